"""Which suite measures a technique on a model, or why nothing does: no technique is left out."""

from __future__ import annotations

from collections.abc import Sequence

from attnctl.bench.effect import (
    characters,
    clips,
    edits,
    fast,
    long,
    motion,
    pictures,
    scenes,
    transfer,
)
from attnctl.bench.effect.settings import (
    MMDIT,
    MODELS,
    MOTION,
    UNET,
    check_name,
    recipes_of,
    singles_of,
)
from attnctl.registry import BUILT_IN, techniques

SUITES = {
    pictures.SUITE: pictures.measure_pictures,
    edits.SUITE: edits.measure_edits,
    scenes.SUITE: scenes.measure_scenes,
    characters.SUITE: characters.measure_characters,
    clips.SUITE: clips.measure_clips,
    motion.SUITE: motion.measure_motion,
    transfer.SUITE: transfer.measure_transfer,
    long.SUITE: long.measure_long,
    fast.SUITE: fast.measure_fast,
}
"""What measures, by name; each takes a :class:`~attnctl.bench.effect.parts.Work`."""

_NO_MOTION = "acts on attention over time in clips made from words: see shapes-motion"
_PICTURES = "on clips from words guidance and what acts over time are measured: see shapes"
_FLOW = "made for flow models, and this one predicts noise: see shapes-mmdit"
_JOINT = "made for joint attention, which this model has not: see shapes-mmdit"
_MAPS = "made for U-Nets with attention to text alone, which joint attention is not: see shapes"
_APART = "acts where attention among image tokens and to the text are apart: see shapes"
_MERGING = "cannot merge tokens whose queries and keys are normalised, as here: see shapes"
_TOKENS = "the pictures of this model have 64 image tokens, too few to leave any out: see shapes"
_INSTRUCT = "needs a model that edits by instruction (InstructPix2Pix), which is not bundled"
_SCENE = "experimental on joint attention; given scenes are measured with the U-Net: see shapes"
_ALL_FRAMES = "needs full attention over time, which no bundled model has"
_TRANSFER = "moves the subject of a clip made from words like another: see shapes-motion"
_LONG = "joins clips made from words into a long one: see shapes-motion"
_CLIPS = "clips are edited with the U-Net, whose inversion gives features: see shapes"

_ON_MOTION = (*motion.TECHNIQUES, *transfer.TECHNIQUES, *long.TECHNIQUES)

REASONS: dict[tuple[str, str], str] = {
    **{(n, m): _NO_MOTION for n in ("broadway", "vico", "vstar") for m in (UNET, MMDIT)},
    **{("focus-on-instruction", model): _INSTRUCT for model in (UNET, MMDIT)},
    ("grad-sam", MMDIT): _SCENE,
    ("ir-diffusion", MMDIT): _MAPS,
    **{(name, MMDIT): _APART for name in ("prime-composer", "region-words")},
    ("rf-control", UNET): _FLOW,
    **{(name, UNET): _JOINT for name in ("stable-flow", "head-router", "flux-space")},
    **{(name, MMDIT): _MAPS for name in ("prompt-to-prompt", "masa-ctrl", "bounded-attention")},
    ("attention-modulation", MMDIT): _APART,
    **{(name, MMDIT): _MERGING for name in ("token-merging", "agent-attention")},
    **{(n, MMDIT): _TOKENS for n in ("token-downsampling", "re-ttention", "sparse-attention")},
    **{(name, MMDIT): _CLIPS for name in clips.TECHNIQUES},
    **{(name, MOTION): _PICTURES for name in BUILT_IN if name not in _ON_MOTION},
    **{("dit-flow", model): _ALL_FRAMES for model in MODELS},
    **{(n, m): _TRANSFER for n in transfer.TECHNIQUES for m in (UNET, MMDIT)},
    **{(n, m): _LONG for n in long.TECHNIQUES for m in (UNET, MMDIT)},
}
"""Why a technique is not measured on a model."""


_OF_ONE_MODEL = {UNET: (scenes, characters, clips, fast), MOTION: (motion, transfer, long)}


def suites_of(name: str, model: str) -> list[str]:
    """Suites that measure a technique, or a recipe, on a model."""
    measured = {
        pictures.SUITE: [e.name for e in (*singles_of(model), *recipes_of(model))],
        edits.SUITE: edits.TECHNIQUES.get(model, ()),
        **{suite.SUITE: suite.TECHNIQUES for suite in _OF_ONE_MODEL.get(model, ())},
    }
    return [suite for suite, names in measured.items() if name in names]


def reason_for(name: str, model: str) -> str:
    """Why a technique that no suite measures on a model is not measured there."""
    unknown = "a technique of another package: `attnctl bench steering -t` measures it"
    return REASONS.get((name, model), unknown)


def known_names() -> list[str]:
    """Names of all techniques, and of the recipes of all models."""
    recipes = [entry.name for model in MODELS for entry in recipes_of(model)]
    return [*techniques(), *dict.fromkeys(recipes)]


def check_names(option: str, given: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that are not known; each is kept once.

    Raises:
        SettingError: with the nearest names.
    """
    for name in given:
        check_name(option, name, known)
    return tuple(dict.fromkeys(given))
