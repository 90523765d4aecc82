"""SLG and STG: guidance away from a copy of the model that skips some of its blocks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attnctl.blocks import ModelParts, block_numbers, find_blocks
from attnctl.calls import AttentionCall, Layout
from attnctl.engine.needs import ModuleHook
from attnctl.errors import NoSiteError, SettingError, nearest
from attnctl.ops.perturbation import identity_output
from attnctl.perturbed import PERTURBED, PerturbedGuidance
from attnctl.registry import register
from attnctl.schedule import Schedule, between
from attnctl.settings import refuse_selector
from attnctl.sites import Site

FORMS = ("block", "attention")


@register("slg")
@dataclass(frozen=True)
class SLG(PerturbedGuidance):
    """Skip-layer guidance: away from a copy of the model that skips some of its blocks.

    ``form="block"`` skips whole transformer blocks: the block's outputs are its inputs (also known
    as STG with residual skip). ``form="attention"`` keeps the blocks and gives every token of
    their self- or joint attention its own value (STG with attention skip); that is PAG at the
    attention sites of these blocks, counted by block.

    Attributes:
        scale: Weight of the guidance, unitless; 0 is off.
        blocks: Blocks in execution order from 0, such as (7, 8, 9) or "7-9"; FLUX's single blocks
            count on behind its double ones, a UNet's go down, mid, up. The default was chosen for
            Stable Diffusion 3.5 medium; Wan is used with (3, 8, 16).
        form: "block" skips the blocks, "attention" their attention alone.
        steps: When it acts; the default is the window of Stable Diffusion 3.5 medium.
        where: Must stay ``all``; ``blocks`` chooses.
    """

    reference: ClassVar[str] = "Stable Diffusion 3.5; Hyung et al., CVPR 2025, arXiv 2411.18664"

    scale: float = 2.8
    blocks: tuple[int, ...] = (7, 8, 9)
    form: str = "block"
    steps: Schedule = field(default=between(0.01, 0.2), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "blocks", block_numbers(self.name, "blocks", self.blocks))
        if self.form not in FORMS:
            raise SettingError(f"{self.name}: form={self.form!r}; {nearest(str(self.form), FORMS)}")
        refuse_selector(self.name, self.where, "skips blocks")

    @property
    def perturbs(self) -> bool:
        """Whether any block is chosen."""
        return bool(self.blocks)

    def overrides(self, method: str) -> bool:
        if method == "edit_output":
            return self.form == "attention"
        return super().overrides(method)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        chosen = model.blocks_at(self.name, self.blocks)
        if self.form == "attention":
            return ()
        return tuple(ModuleHook(b.path, "skip", streams=b.streams) for b in chosen)

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        kept: list[Site] = []
        for denoiser in dict.fromkeys(site.denoiser for site in sites):
            mine = [site for site in sites if site.denoiser == denoiser]
            blocks = find_blocks(mine, ())
            paths = tuple(f"{blocks[n].path}." for n in self.blocks if n < len(blocks))
            kept += [s for s in mine if s.path.startswith(paths) and s.kind in ("self", "joint")]
        if sites and self.blocks and not kept:
            raise NoSiteError(
                f"{self.name}: blocks={list(self.blocks)} hold no self- or joint attention to "
                "skip; choose other blocks, or form='block'"
            )
        return tuple(kept)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        at = call.pick(kind=PERTURBED)
        if not len(at):
            return out
        value = call.value[at].repeat_interleave(out.shape[1] // call.value.shape[1], dim=1)
        return out.index_copy(0, at, identity_output(value).to(out))
