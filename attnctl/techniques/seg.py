"""SEG: guidance away from a copy of the model whose attention queries are blurred."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from attnctl.calls import AttentionCall, Layout, Needs
from attnctl.chosen_heads import on_heads
from attnctl.errors import UnsupportedModelError
from attnctl.ops.blur import blur_queries
from attnctl.perturbed import PERTURBED, PerturbedGuidance
from attnctl.registry import register
from attnctl.settings import check_number
from attnctl.sites import Site, check_kinds
from attnctl.where import Where

INFINITE = -1.0


@register("seg")
@dataclass(frozen=True)
class SEG(PerturbedGuidance):
    """Smoothed-energy guidance: away from a copy of the model whose queries are blurred.

    In an added row, the queries of the chosen self-attention are blurred over the grid of the
    image tokens; keys and values stay. On joint attention the image queries alone are blurred.
    Queries are taken as they enter the attention: behind norms and rotary embedding.

    Attributes:
        scale: Weight of the guidance, unitless; 0 is off.
        sigma: Width of the blur in tokens; 0 is off; negative, infinite or above 9999: every query
            becomes the mean of its frame, shown as -1.
        where: Self- or joint attention to blur; a model without a middle needs its own choice,
            such as ``joint,layers=7-9``.
    """

    reference: ClassVar[str] = "Hong, NeurIPS 2024, arXiv 2408.00760"

    sigma: float = INFINITE
    where: Where = field(default=Where("mid:self"), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma == float("inf"):
            object.__setattr__(self, "sigma", INFINITE)  # recipes and metadata hold finite numbers
        check_number(self.name, "sigma", self.sigma)

    def needs(self) -> Needs:
        return replace(super().needs(), layout=True)

    @property
    def perturbs(self) -> bool:
        """Whether the blur has any width."""
        return self.sigma != 0

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        does = "blurs the queries of image tokens among themselves"
        check_kinds(self.name, sites, ("self", "joint"), does, "mid:self")
        return sites

    def edit_qkv(self, call: AttentionCall) -> None:
        at = call.pick(kind=PERTURBED)
        layout = call.layout
        if not len(at):
            return
        if layout is None:
            raise UnsupportedModelError(
                f"{self.name}: how the tokens of {call.site.path} lie is unknown"
            )
        query = call.query[at]
        image = query[:, :, layout.image]
        blurred = blur_queries(image, *layout.size, self.sigma)
        blurred = on_heads(blurred, image, call.heads, query.shape[1])
        query = query.clone()
        query[:, :, layout.image] = blurred
        call.query = call.query.index_copy(0, at, query)
