"""Compose a given object into a given scene: PrimeComposer.

Both pictures are inverted with DDIM. From noise inside the box, and the scene's own noise around
it, a picture is sampled whose self-attention is infused with what object and scene have to do with
each other, whose latents around the box are the scene's, and in which the object's words act where
the object is. Steps are those of the first-order solver: a share ``tau`` of ``N`` steps is
``int(tau N)`` steps.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attnctl.editing.trajectories import Trajectory
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.inversion import Inversion, decode, invert, refuse_unsupported, sampler_of
from attnctl.inversion.driven import OnEvaluation
from attnctl.inversion.hosts import Call, family_of, run_pipeline, working_latents
from attnctl.ops.bounded_attention import Box
from attnctl.ops.composition import paired_tokens, start_latents, steps_until
from attnctl.report import Report
from attnctl.schedule import until
from attnctl.technique import Technique
from attnctl.techniques.keep_scene import KeepScene
from attnctl.techniques.prime_composer import PrimeComposer
from attnctl.techniques.region_words import RegionWords

from .compose_places import Placement, place, read_box
from .compose_settings import DOMAINS, ComposeSettings
from .edit_scores import Scores, score

FAMILY = "UNet (SD 1.x, 2.x, SDXL)"
"""The family whose self-attention and attention to text are apart, and whose pictures invert."""


@dataclass(frozen=True, slots=True)
class Composition:
    """What a composition gave.

    Attributes:
        composed: The picture.
        placement: Where the object lies, and the canvas that was inverted.
        scores: Likeness of picture and scene; outside of the box they should be alike.
        settings: With every choice filled in.
        evaluations: Evaluations of the denoiser, inversion and sampling.
        seconds: Time of everything.
        inversion: Of scene and canvas, items 0 and 1.
        report: What techniques did.
    """

    composed: Image.Image
    placement: Placement
    scores: Scores
    settings: ComposeSettings
    evaluations: int
    seconds: float
    inversion: Inversion = field(repr=False)
    report: Report | None = field(repr=False)


def compose(
    pipe: Any,
    background: Image.Image,
    subject: Image.Image,
    prompt: str,
    *,
    words: Sequence[str | int],
    box: Box,
    mask: Image.Image | None = None,
    settings: ComposeSettings | None = None,
    techniques: Sequence[Technique] = (),
    inversion: Inversion | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> Composition:
    """Compose an object into a scene.

    Args:
        pipe: A pipeline of Stable Diffusion 1.x, 2.x or SDXL; it is left as it was.
        background: The scene, RGB, of a size that the model takes
            (:func:`attnctl.pipelines.edit_pictures.fit_picture`).
        subject: Picture of the object, RGB, of any size.
        prompt: What the composed picture shows.
        words: The object's words in it, or their token positions.
        box: Where the object goes, ``(x0, y0, x1, y1)`` in parts of the scene from its upper left
            corner. It is scaled to fit, with its proportions.
        mask: White where ``subject`` shows the object, of its size; ``None``: everywhere.
        settings: Style of the scene, and how to compose.
        techniques: Further ones, attached while the picture is sampled.
        inversion: That of an earlier composition of the same pictures at the same place, to save
            its time.
        on_evaluation: Is told how many evaluations of the denoiser are done in the present part
            (inversion, then sampling), and of how many; it may raise to stop.

    Raises:
        UnsupportedModelError: the model is no such UNet, or cannot be inverted.
        SettingError: words, box, mask, prompt or inversion cannot be used. All of these are said
            before anything is computed.
    """
    import attnctl

    started = time.perf_counter()
    refuse_other_models(pipe)
    chosen = filled(settings or ComposeSettings())
    check_words(prompt, words)
    for word in words:
        if isinstance(word, str):
            attnctl.locate_tokens(pipe, prompt, word)
    placement = place(pipe, background, subject, mask, read_box(box))
    if inversion is None:
        pictures = [background, placement.canvas]
        inversion = invert(
            pipe, pictures, "", steps=chosen.steps, refinements=chosen.refinements,
            on_evaluation=on_evaluation,
        )  # fmt: skip
    scene, canvas = _trajectories(inversion, chosen.steps, background)
    made = _techniques(placement, scene, canvas, words, chosen)
    call = _watched(
        pipe,
        Call([prompt], background.size, chosen.steps, chosen.guidance or 1.0, chosen.negative),
        on_evaluation,
    )
    start = working_latents(pipe, _start(placement, scene, canvas, chosen))
    latents, report = run_pipeline(pipe, sampler_of(pipe), start, call, [*made, *techniques])
    composed, plain = decode(pipe, torch.cat([latents, scene.clean.to(latents)]), background.size)
    return Composition(
        composed, placement, score(background, composed, placement.box, plain), chosen,
        inversion.evaluations + chosen.steps, time.perf_counter() - started, inversion, report,
    )  # fmt: skip


def refuse_other_models(pipe: Any) -> None:
    """Refuse a pipeline whose attention is not laid out as the method needs it.

    Raises:
        UnsupportedModelError: naming its family and what fits.
    """
    refuse_unsupported(pipe, pictures=True)
    name = family_of(pipe).name
    if name != FAMILY:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} ({name}) cannot compose pictures, which takes a UNet with "
            f"self-attention and attention to text apart; use a model of {FAMILY}"
        )


def check_words(prompt: str, words: Sequence[str | int]) -> None:
    """Refuse an empty prompt, and a list without a word.

    Raises:
        SettingError: saying which.
    """
    if not prompt.strip():
        raise SettingError("compose: the prompt is empty; say what the composed picture shows")
    if isinstance(words, str) or not words:
        raise SettingError(
            f"compose: words={words!r} must list the object's words in the prompt, such as "
            "['red circle']"
        )


def filled(settings: ComposeSettings) -> ComposeSettings:
    """The settings with what they leave to the scene's style."""
    usual = DOMAINS[settings.domain]
    names = ("guidance", "infuse", "paste")
    open_ones = {name: getattr(usual, name) for name in names if getattr(settings, name) is None}
    return replace(settings, **open_ones)


def _trajectories(
    inversion: Inversion, steps: int, background: Image.Image
) -> tuple[Trajectory, Trajectory]:
    """Those of scene and canvas, one item each.

    Raises:
        SettingError: the inversion is of other pictures or steps.
    """
    known = inversion.trajectory
    size = background.size
    if known is None or known.items != 2 or inversion.steps != steps or inversion.size != size:
        raise SettingError(
            f"compose: the inversion is of {len(inversion.noise)} pictures of {inversion.size} "
            f"pixels in {inversion.steps} steps with {inversion.method!r}; wanted are scene and "
            f"canvas of {size} pixels in {steps} steps, as an earlier composition leaves them"
        )
    scene, canvas = (
        Trajectory(known.timesteps, [x[item : item + 1] for x in known.latents]) for item in (0, 1)
    )
    return scene, canvas


def _techniques(
    placement: Placement,
    scene: Trajectory,
    canvas: Trajectory,
    words: Sequence[str | int],
    chosen: ComposeSettings,
) -> list[Technique]:
    infuse, paste, blend = (
        steps_until(share or 0.0, chosen.steps)
        for share in (chosen.infuse, chosen.paste, chosen.blend)
    )
    pair = paired_tokens(placement.mask, placement.shift)
    made: list[Technique] = [
        PrimeComposer(scene, canvas, placement.mask, placement.shift, steps=until(infuse)),
        KeepScene(scene, canvas, placement.free, pair, paste_until=paste, steps=until(blend)),
    ]
    return [*made, RegionWords(words, placement.region)] if chosen.confine else made


def _start(
    placement: Placement, scene: Trajectory, canvas: Trajectory, chosen: ComposeSettings
) -> Tensor:
    """Latents that sampling starts from, fp32."""
    generator = torch.Generator("cpu").manual_seed(chosen.seed)
    noise = torch.randn(scene.noise.shape, generator=generator).to(scene.noise)
    device = scene.noise.device
    own, to = (t.to(device) for t in paired_tokens(placement.mask, placement.shift))
    return start_latents(
        scene.noise, canvas.noise, noise, placement.free.to(device), (own, to),
        from_object=DOMAINS[chosen.domain].from_object,
    )  # fmt: skip


def _watched(pipe: Any, call: Call, tell: OnEvaluation | None) -> Call:
    """The call, with the step callback of stock pipelines as progress."""
    name = "callback_on_step_end"
    if tell is None or name not in inspect.signature(pipe.__call__).parameters:
        return call

    def after_step(_pipe: Any, index: int, _timestep: Any, values: Any) -> Any:
        tell(index + 1, call.steps)
        return values

    return replace(call, options={name: after_step})
