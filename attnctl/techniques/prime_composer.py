"""PrimeComposer: an object of another picture joins a scene, its attention measured beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl.calls import AddedRow, AttentionCall, InputsCall, Layout, Needs, RunStart
from attnctl.editing.paired_rows import with_target_output
from attnctl.editing.trajectories import Trajectory
from attnctl.editing.unet_maps import grid_of, refuse_transformers
from attnctl.errors import FeatureError, SettingError, UnsupportedModelError
from attnctl.kernels import attention, attention_scores
from attnctl.ops.composition import (
    Shift,
    infused_attention,
    paired_tokens,
    strided,
    with_tokens,
)
from attnctl.registry import register
from attnctl.schedule import Schedule, until
from attnctl.sites import Site, check_kinds
from attnctl.technique import Technique
from attnctl.where import Where
from attnctl.windows import is_whole

OBJECT, COMPOSITE = "object", "composite"
"""Kinds of the added rows: the object on its canvas, and pasted into the scene."""


@dataclass(slots=True)
class _State:
    """Tokens of the object in the layers of one run, by their grid."""

    tokens: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(
        default_factory=dict[tuple[int, int], tuple[Tensor, Tensor]]
    )


@register("prime-composer")
@dataclass(frozen=True)
class PrimeComposer(Technique):
    """Infuse what an object and a scene have to do with each other into self-attention.

    At its steps two rows run beside each picture: the object on its canvas, and the scene with the
    object pasted in, both at the noise level of the step. Their queries see the object's tokens on
    its canvas alone, and the logits of the pasted scene become those of the picture: columns of
    the object's tokens first, then their rows. The conditional rows alone are edited.
    ``attnctl.pipelines.compose`` inverts both pictures, finds the places, and keeps the
    background.

    The paper's text is followed where its code differs: logits are measured with queries of the
    pasted scene. The code's multistep solver is not needed; any sampler whose levels the
    trajectories have will do. In step 0 the canvas shows the object as it was inverted, later as
    it is in the picture so far.

    Attributes:
        background: Latents of the scene at every level, one item, as
            ``attnctl.inversion.invert`` leaves them; None: it does nothing.
        subject: Likewise those of the canvas with the object.
        mask: Cells of the latents that show the object on its canvas, bool ``(h, w)``; without
            any it does nothing.
        shift: Rows and columns, in cells of the latents, from there to the scene. In coarser
            layers they are rounded to whole tokens.
        steps: Steps with infusion; the authors' are 0-30% for one style, 0-40% for a scene in
            cartoon and 0-60% for one in pencil.
        where: Self-attention.
    """

    reference: ClassVar[str] = "Wang et al., ACM MM 2024, arXiv 2403.05053"
    families: ClassVar[str] = "Stable Diffusion 1.x, 2.x and SDXL (UNets)"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})
    no_settings: ClassVar[frozenset[str]] = frozenset({"background", "subject", "mask"})

    background: Trajectory | None = field(default=None, repr=False, compare=False)
    subject: Trajectory | None = field(default=None, repr=False, compare=False)
    mask: Tensor | None = field(default=None, repr=False, compare=False)
    shift: Shift = (0, 0)
    steps: Schedule = field(default=until(0.3), kw_only=True)
    where: Where = field(default=Where("self"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        given: Any = self.shift
        pair = tuple(given) if isinstance(given, list | tuple) else ()
        if len(pair) != 2 or not all(is_whole(one) for one in pair):
            raise SettingError(
                f"{self.name}: shift={given!r} must be whole numbers of rows and columns, such as "
                "(4, -2)"
            )
        object.__setattr__(self, "shift", pair)
        mask: Any = self.mask
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim() == 2
        if mask is not None and not is_mask:
            raise SettingError(
                f"{self.name}: mask= must be a bool tensor (h, w), one entry for each cell of the "
                f"latents, got {type(mask).__name__}"
            )
        for name in ("background", "subject"):
            one = getattr(self, name)
            if one is not None and not isinstance(one, Trajectory):
                raise SettingError(
                    f"{self.name}: {name}={one!r} must come from an inversion, such as "
                    "attnctl.inversion.invert(pipe, picture).trajectory"
                )

    def needs(self) -> Needs:
        rows = tuple(AddedRow(kind, other_picture=True) for kind in (OBJECT, COMPOSITE))
        return Needs(rows=rows, couples=True, layout=True)

    def strength_at(self, index: int, total: int | None) -> float:
        return self.steps.strength(index, total) if self.is_on else 0.0

    @property
    def is_on(self) -> bool:
        """Whether it was given a scene, and an object with at least one cell."""
        is_known = self.background is not None and self.subject is not None
        return is_known and self.mask is not None and bool(self.mask.any())

    def select(self, sites: Sequence[Site], model: str) -> Where:
        fitting = f"it supports {self.families}"
        refuse_transformers(self.name, sites, "composes pictures with UNets", fitting)
        chosen = self.where.sites(sites)
        check_kinds(self.name, chosen, ("self",), "acts on self-attention", "self")
        return self.where

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        if any(x is None or x.is_video for x in layouts.values()):
            raise UnsupportedModelError(
                f"{self.name} composes pictures, not clips; it supports {self.families}"
            )
        return sites

    def begin(self, run: RunStart) -> _State:
        if not self.is_on:
            return _State()
        latents = run.fingerprint().latents
        for name, known in (("background", self.background), ("subject", self.subject)):
            assert known is not None  # is_on
            if known.items != 1 or tuple(known.noise.shape[1:]) != latents:
                raise FeatureError(
                    f"{self.name}: {name} has {known.items} items of latents "
                    f"{tuple(known.noise.shape[1:])}, the run latents {latents}; invert one "
                    "picture of the size of the run"
                )
            if len(known.timesteps) != run.total:
                raise FeatureError(
                    f"{self.name}: {name} has {len(known.timesteps)} steps and the run "
                    f"{run.total}; run with the number of steps of the inversion"
                )
        assert self.mask is not None  # is_on
        if tuple(self.mask.shape) != latents[-2:]:
            raise SettingError(
                f"{self.name}: mask has {tuple(self.mask.shape)} cells and the latents "
                f"{latents[-2:]}; give one for each cell"
            )
        return _State()

    def added_latents(self, call: InputsCall, kind: str) -> Tensor:
        assert self.background is not None  # is_on
        assert self.subject is not None
        own, scene = self._tokens(call.state, _grid(call.latents), call.latents)
        canvas, background = (
            known.at(call.step.timestep).to(call.latents).expand_as(call.latents)
            for known in (self.subject, self.background)
        )
        if kind == COMPOSITE:
            return with_tokens(background, scene, canvas, own)
        if call.step.index == 0:
            return canvas
        return with_tokens(canvas, own, call.latents, scene)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        canvas, composite = (call.pick("cond", kind=kind) for kind in (OBJECT, COMPOSITE))
        grid = grid_of(call)
        own, scene = self._tokens(call.state, grid, call.query)
        if not len(canvas) or not len(own):
            return out
        seen = call.key[canvas][:, :, own], call.value[canvas][:, :, own]
        for rows in (canvas, composite):
            alone = call.attend(call.query[rows], *seen)
            out = with_target_output(out, rows, alone, call.strength, call.heads)
        prior = attention_scores(call.query[composite], seen[0], call.scale)
        places = {call.rows[int(at)].item: place for place, at in enumerate(canvas)}
        beside = {*canvas.tolist(), *composite.tolist()}
        at = torch.tensor([i for i in call.pick("cond").tolist() if i not in beside])
        at = at.to(canvas)
        of_item = [places[call.rows[int(i)].item] for i in at]
        mask = call.additive_mask()
        infused = infused_attention(
            call.query[at],
            call.key[at],
            call.value[at],
            prior[of_item],
            scene,
            mask[at] if mask is not None and len(mask) > 1 else mask,
            partial(_attend, scale=call.scale),
        )
        return with_target_output(out, at, infused, call.strength, call.heads)

    def _tokens(self, state: _State, grid: tuple[int, int], like: Tensor) -> tuple[Tensor, Tensor]:
        """The object's tokens at a layer with this grid: on its canvas, and in the scene.

        Raises:
            UnsupportedModelError: the layer has no token for every n-th cell of the latents.
        """
        if grid not in state.tokens:
            assert self.mask is not None  # is_on
            cells = tuple(self.mask.shape)
            stride = max(1, round(cells[0] / grid[0]))
            if tuple(strided(self.mask, stride).shape) != grid:
                raise UnsupportedModelError(
                    f"{self.name}: a layer has {grid[0]} x {grid[1]} tokens for "
                    f"{cells[0]} x {cells[1]} cells of latents, which is no whole stride; use a "
                    "size whose sides are multiples of 64 pixels"
                )
            own, scene = paired_tokens(self.mask, self.shift, stride)
            state.tokens[grid] = own.to(like.device), scene.to(like.device)
        return state.tokens[grid]


def _grid(latents: Tensor) -> tuple[int, int]:
    """Height and width of latents ``(B, C, h, w)``, in cells."""
    return int(latents.shape[-2]), int(latents.shape[-1])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention with its log-sum-exp."""
    out, lse = attention(query, key, value, mask, scale, need_lse=True)
    assert lse is not None  # asked for
    return out, lse
