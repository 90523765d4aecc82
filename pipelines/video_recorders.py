"""What techniques take over from the inversion of a clip, and what records it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from attnctl.editing.features import FeatureStore
from attnctl.editing.injection import injection_places
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.families import find_family
from attnctl.inversion.hosts import find_denoiser
from attnctl.sites import find_sites
from attnctl.technique import Technique
from attnctl.techniques.real_craft import RealCraft
from attnctl.techniques.recorders import AttentionRecorder, ModuleRecorder
from attnctl.techniques.token_flow import TokenFlow, matched_modules
from attnctl.techniques.word_swap import WordSwap

from .video_settings import VideoEditSettings


def takes_features(settings: VideoEditSettings, techniques: Sequence[Technique]) -> bool:
    """Whether features of the inversion are recorded."""
    return settings.inject > 0 and bool(_taking(techniques))


def recorders_of(
    pipe: Any,
    settings: VideoEditSettings,
    techniques: Sequence[Technique],
    store: FeatureStore | None,
) -> list[Technique]:
    """What fills the store while the clip is inverted; nothing without a store.

    Args:
        pipe: The pipeline.
        settings: With both prompts.
        techniques: What will be attached while sampling.
        store: Where features go.

    Raises:
        UnsupportedModelError: the model has no place where features are taken over.
        SettingError: words are exchanged, but the prompts have different numbers of tokens.
    """
    if store is None:
        return []
    taking = _taking(techniques)
    made: list[Technique] = []
    for swap in (technique for technique in taking if isinstance(technique, WordSwap | RealCraft)):
        _check_words(pipe, settings, swap.name)
        made.append(AttentionRecorder(store, where=swap.where))
    model = find_denoiser(pipe)
    sites = find_sites("denoiser", model, find_family(model)).values()
    for matched in (technique for technique in taking if isinstance(technique, TokenFlow)):
        made.append(ModuleRecorder(store, matched_modules(matched.where.sites(list(sites)))))
    if all(isinstance(technique, WordSwap | RealCraft | TokenFlow) for technique in taking):
        return made
    places = injection_places(sites)
    if not places.sites:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has no place where features of the inversion are taken over;"
            " use inject=0 (--inject 0)"
        )
    recorder = AttentionRecorder(store, where=places.where)  # pyright: ignore[reportArgumentType]
    return [*made, recorder, ModuleRecorder(store, places.modules)]


def _taking(techniques: Sequence[Technique]) -> list[Technique]:
    """Techniques that wait for features."""
    return [
        technique
        for technique in techniques
        if any(f.name == "features" for f in fields(technique))
        and getattr(technique, "features") is None  # noqa: B009
    ]


def _check_words(pipe: Any, settings: VideoEditSettings, technique: str) -> None:
    """Words are exchanged by position, so each needs a partner."""
    lengths = [len(pipe.tokenizer(text).input_ids) for text in (settings.source, settings.target)]
    if lengths[0] != lengths[1]:
        raise SettingError(
            f"{technique} exchanges words by position, but {settings.source!r} has {lengths[0]}"
            f" tokens and {settings.target!r} has {lengths[1]}; write prompts of the same length"
        )
