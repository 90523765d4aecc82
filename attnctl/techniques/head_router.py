"""HeadRouter: editing by amplifying the attention heads in which two prompts differ."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import AttentionCall, InputsCall, Needs, Read, RunStart
from attnctl.chosen_heads import on_heads
from attnctl.editing.items import check_items
from attnctl.editing.paired_rows import edited_items
from attnctl.editing.text_streams import NAMES, STREAMS, text_blocks
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import SettingError, UnsupportedModelError, nearest
from attnctl.ops.head_routing import (
    head_similarity,
    power_weights,
    reweighted_map_change,
    saliency_weights,
    sigmoid_weights,
)
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.where import Where

ROUTERS = ("sigmoid", "power", "constant", "source")
FORMS = ("output", "map")


@dataclass(slots=True)
class _State:
    """One run: where image tokens are refined, what maps add there, and whom to warn."""

    refined: frozenset[Site]
    warn: Callable[[str], None]
    changes: dict[tuple[Site, int], Tensor] = field(default_factory=dict[tuple[Site, int], Tensor])


@register("head-router")
@dataclass(frozen=True)
class HeadRouter(Technique):
    """Edit a picture by words: amplify the attention heads that answer two prompts differently.

    Reconstructed from incomplete sources: the released code does not run, and the text of the
    paper was not available. The source and the target are two pictures of your own batch, with
    the same start noise: ``pipe(prompt=[source, target], latents=same)``. Each head of the
    target's conditional row is scaled by how little it resembles the same head of the source's;
    features of earlier blocks are mixed into its text; image tokens that dominate a channel are
    stressed (FLUX's single blocks). The source is never touched, unless ``refine_source`` says so.
    Rows of other techniques that shadow the target are treated like it.

    Attributes:
        source: Picture of the batch that stays as it is, from 0.
        target: Picture that is edited, or several: ``(1, 2)``, ``"1+2"``.
        gamma: Most that a head is amplified by, from 0, unitless; 0 is off.
        delta: ``sigmoid``: rank between the most similar head (0) and the most different (1) that
            gets half of it. ``power``: similarity below which heads are amplified.
        router: ``sigmoid`` of the rank, as published; ``power`` of the similarity (the code's
            unused variant has gamma 0.5, delta 0.9); ``constant``: all selected heads by gamma;
            ``source``: selected heads move to the source's output, all the way with gamma 1.
        sharpness: Steepness of ``sigmoid``, from 0.
        text_blend: Share of a block's text input in that of the next block, in [0, 1]; 0 is off.
        refine_source: Blend the source's text, too, as the released code does; the source then
            is no longer what a plain run gives.
        alpha: Image tokens get weights in [alpha / 2, alpha); an unused version of the code has
            5, which multiplies everything by 2.5 or more.
        upsilon: How steeply the weights grow with a token's share of its channel, from 0; with
            alpha 2, 0 is off.
        form: Image tokens are weighted in the attention's ``output``, as the code does, or
            (experimental, a guess at the paper) in the image-to-text block of the ``map``.
        where: Joint attention where heads are routed and image tokens refined; ``heads=`` selects
            those that are scaled.
        image_where: Which of these refine image tokens.
    """

    reference: ClassVar[str] = (
        "Xu et al., ACM TOG 2025, arXiv 2411.15034; reconstructed from incomplete sources"
    )
    families: ClassVar[str] = NAMES

    source: int = 0
    target: int | tuple[int, ...] = 1
    gamma: float = 0.2
    delta: float = 0.5
    router: str = "sigmoid"
    sharpness: float = 1.0
    text_blend: float = 0.1
    refine_source: bool = False
    alpha: float = 2.0
    upsilon: float = 5.0
    form: str = "output"
    where: Where = field(default=Where("joint"), kw_only=True)
    image_where: Where = field(default=Where("single:joint"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        edited_items(self.name, self.source, self.target)
        check_number(self.name, "gamma", self.gamma, at_least=0)
        check_number(self.name, "delta", self.delta)
        check_number(self.name, "sharpness", self.sharpness, at_least=0)
        check_number(self.name, "text_blend", self.text_blend, at_least=0, at_most=1)
        check_number(self.name, "alpha", self.alpha, at_least=0)
        check_number(self.name, "upsilon", self.upsilon, at_least=0)
        for name, allowed in (("router", ROUTERS), ("form", FORMS)):
            value = getattr(self, name)
            if value not in allowed:
                raise SettingError(f"{self.name}: {name}={value!r}; {nearest(str(value), allowed)}")
        if self.router == "source":
            check_number(self.name, "gamma", self.gamma, at_least=0, at_most=1)
        if self.router == "power" and self.delta <= 0:
            raise SettingError(
                f"{self.name}: delta={self.delta} must be above 0 with router='power', which "
                "amplifies heads of a cosine similarity below it, such as 0.9"
            )
        object.__setattr__(self, "image_where", Where.parse(self.image_where))

    @property
    def targets(self) -> tuple[int, ...]:
        """Numbers of the edited pictures."""
        return edited_items(self.name, self.source, self.target)

    @property
    def refines_images(self) -> bool:
        """Whether image tokens get weights other than 1."""
        return self.alpha != 2 or self.upsilon > 0

    def needs(self) -> Needs:
        reads = ()
        if self.refines_images and self.form == "map":
            reads = (Read("columns", where=self.image_where),)
        return Needs(reads=reads, couples=True, layout=True)

    def strength_at(self, index: int, total: int | None) -> float:
        if self.gamma == 0 and self.text_blend == 0 and not self.refines_images:
            return 0.0
        return self.steps.strength(index, total)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        blocks = text_blocks(self.name, model)
        double = [b for b in blocks if b.stage != "single"]
        if self.text_blend == 0:
            return ()
        return tuple(ModuleHook(b.path, "after", "blend_text") for b in double[:-1])

    def begin(self, run: RunStart) -> _State:
        check_items(self.name, run.items, source=self.source, target=self.targets)
        unknown = [path for path, layout in run.layouts.items() if layout is None]
        if unknown:
            raise UnsupportedModelError(
                f"{self.name}: it is not known which tokens of {unknown[0]} are image tokens"
            )
        refined: tuple[Site, ...] = ()
        if self.refines_images:
            refined = tuple(s for s in run.sites if self._refines(s))
            if not refined and self.image_where != type(self).image_where:
                self.image_where.sites(run.sites)  # says what there is
            if not refined:
                run.note(f"{self.name}: no image tokens are refined: no site is {self.image_where}")
        return _State(frozenset(refined), run.warn)

    def edit_inputs(self, call: InputsCall) -> None:
        """Warn of a start from different noises; nothing is edited."""
        first = call.latents[self.source]
        if call.step.iteration == 0 and any(
            not torch.equal(first, call.latents[t]) for t in self.targets
        ):
            call.state.warn(
                f"{self.name}: source and target start from different noise, so they show "
                "different pictures; give the pipeline the same latents for both"
            )

    def blend_text(self, call: ModuleCall) -> None:
        """Mix the text that went into a block into what comes out of it."""
        given, made = call.arguments[STREAMS[0]], call.output[0]
        share = self.text_blend * call.strength
        for item in (*self.targets, *((self.source,) if self.refine_source else ())):
            at = call.pick(made, branch="cond", item=item)
            made = made.index_copy(0, at, torch.lerp(made[at], given[at], share))
        call.output = (made, *call.output[1:])

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        if call.site not in call.state.refined or call.layout is None or call.layout.text is None:
            return
        at = call.pick(branch=what.branch, kind="main").tolist()
        for target in self.targets:
            own = call.pick(branch=what.branch, item=target, kind="main")
            columns = value[[at.index(place) for place in own.tolist()]]
            text = call.value[own][:, :, call.layout.text]
            change = reweighted_map_change(columns, text, self.alpha, self.upsilon)
            call.state.changes[(call.site, target)] = change

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        source = call.pick(branch="cond", item=self.source, kind="main")
        if not len(source):
            return out
        for target in self.targets:
            at = call.pick(branch="cond", item=target)
            own = call.pick(branch="cond", item=target, kind="main")
            change = call.state.changes.pop((call.site, target), None)
            if change is not None:
                out = self._with_map_change(call, out, at, change)
            edited = self._routed(call, out[at], out[source], out[own])
            if self.form == "output" and call.site in call.state.refined:
                edited = self._stressed(call, edited)
            out = out.index_copy(0, at, edited)
        return out

    def _routed(
        self, call: AttentionCall, edited: Tensor, source: Tensor, target: Tensor
    ) -> Tensor:
        """The target's rows with each head scaled, by what the pipeline's own rows tell."""
        if self.gamma == 0:
            return edited
        copies = len(edited) // len(target)
        if self.router == "source":
            moved = torch.lerp(edited, source.repeat(copies, 1, 1, 1), self.gamma * call.strength)
        else:
            weights = 1 + call.strength * (self._weights(source, target) - 1)
            moved = (edited * weights.repeat(copies, 1)[:, :, None, None]).to(edited.dtype)
        return on_heads(moved, edited, call.heads, edited.shape[1])

    def _weights(self, source: Tensor, target: Tensor) -> Tensor:
        """Weight of each head, ``(rows, H)``."""
        if self.router == "constant":
            return torch.full(target.shape[:2], 1 + self.gamma, device=target.device)
        similarity = head_similarity(source, target)
        if self.router == "power":
            return power_weights(similarity, self.gamma, self.delta)
        return sigmoid_weights(similarity, self.gamma, self.delta, self.sharpness)

    def _stressed(self, call: AttentionCall, edited: Tensor) -> Tensor:
        """The rows with their image tokens weighted by saliency, channel by channel."""
        assert call.layout is not None  # looked at by `begin`
        tokens = edited[:, :, call.layout.image]
        weights = 1 + call.strength * (saliency_weights(tokens, self.alpha, self.upsilon) - 1)
        return _with_tokens(edited, call.layout.image, (tokens * weights).to(edited.dtype))

    def _with_map_change(
        self, call: AttentionCall, out: Tensor, at: Tensor, change: Tensor
    ) -> Tensor:
        """The output with what a reweighted map adds to the image tokens of the rows ``at``."""
        assert call.layout is not None  # looked at by `begin`
        rows = out[at]
        copies = len(rows) // len(change)
        added = call.strength * change.repeat(copies, 1, 1, 1)
        image = call.layout.image
        return out.index_copy(0, at, _with_tokens(rows, image, rows[:, :, image] + added))

    def _refines(self, site: Site) -> bool:
        return all(
            any(one.matches(site) for one in chosen.selections())
            for chosen in (self.where, self.image_where)
        )


def _with_tokens(rows: Tensor, tokens: slice, values: Tensor) -> Tensor:
    """The rows ``(B, H, N, D)`` with some of their tokens replaced."""
    edited = rows.clone()
    edited[:, :, tokens] = values
    return edited
