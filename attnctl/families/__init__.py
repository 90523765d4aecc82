"""Model families: where things are in a denoiser. One file a family, and nothing but facts in it.

A family says which tokens are text, which are image, how they lie on a grid, how rows are laid out
for guidance, and what the pipeline calls the denoiser. An unknown model still gets everything that
needs no layout.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from torch import nn

from attnctl.calls import Layout
from attnctl.sites import BlockList, Site, generic_site, unwrapped

if TYPE_CHECKING:
    from attnctl.segments import TextSegment

SiteRule = Callable[[str, nn.Module, Any], Site | None]
LayoutRule = Callable[[Site, Mapping[str, Any], Any], Layout | None]
TextRule = Callable[[Any, "Sequence[TextSegment]"], "tuple[TextSegment, ...]"]

ROW_ARGUMENTS = frozenset(
    {
        "sample",
        "hidden_states",
        "encoder_hidden_states",
        "encoder_hidden_states_image",
        "timestep",
        "timestep_cond",
        "guidance",
        "class_labels",
        "pooled_projections",
        "added_cond_kwargs",
        "attention_kwargs",
        "joint_attention_kwargs",
        "attention_mask",
        "encoder_attention_mask",
        "down_block_additional_residuals",
        "mid_block_additional_residual",
        "down_intrablock_additional_residuals",
        "block_controlnet_hidden_states",
        "controlnet_block_samples",
        "controlnet_single_block_samples",
        "ofs",
    }
)


def _no_layout(site: Site, inputs: Mapping[str, Any], config: Any) -> Layout | None:
    return None


def _first_call(module: nn.Module, call: int) -> bool:
    return call == 0


def _no_text(pipe: Any, segments: "Sequence[TextSegment]") -> "tuple[TextSegment, ...]":
    return ()


def _never(arguments: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Family:
    """Facts about the denoisers of one family.

    Attributes:
        name: Short name for people.
        classes: Class names of the denoisers.
        denoisers: Pipeline attributes that may hold one.
        branches: Order of the guidance branches in one batch.
        separate: The pipeline calls the denoiser once a branch; the first call is ``cond``.
        weaker_calls: Further calls of a step are the pipeline's own weakened copies of the model.
        combine: How the pipeline joins the branches.
        from_cond: Its guidance scale counts from the conditional prediction: ``c + s (c - u)``.
        latents: Argument that carries the latents; our channels come first in it.
        channels_axis: Axis of the channels in that argument.
        prompt_arguments: Text arguments of the denoiser, each with its place in what the pipelines'
            ``encode_prompt`` returns; empty if that is unknown.
        batched: Arguments whose axis 0 is rows, or rows times frames.
        listed: Those of them that may be lists with an entry a row.
        layered: Those with an axis of layers in front of that of rows.
        pipeline_branches: Pipelines (by class name) with an order of branches of their own.
        blocks: Its blocks in execution order.
        site: Describes an attention module.
        layout: Tells how the tokens of a site lie, from the denoiser's arguments.
        main_call: Whether the n-th SDPA call of a module is the site's own.
        calls_a_row: A module makes one such call for each row, in their order.
        text: Where text encoders put their tokens, from the pipeline and what is known of each;
            empty if that needs no description.
        leaves_out: Whether a processor that is given these arguments makes no such call.
    """

    name: str
    classes: tuple[str, ...]
    denoisers: tuple[str, ...] = ("transformer",)
    branches: tuple[str, ...] = ("uncond", "cond")
    separate: bool = False
    weaker_calls: bool = False
    combine: str = "affine"
    from_cond: bool = False
    latents: str = "hidden_states"
    channels_axis: int = 1
    prompt_arguments: Mapping[str, int] = field(default_factory=dict[str, int])
    batched: frozenset[str] = ROW_ARGUMENTS
    listed: frozenset[str] = frozenset()
    layered: frozenset[str] = frozenset()
    pipeline_branches: Mapping[str, tuple[str, ...]] = field(
        default_factory=dict[str, tuple[str, ...]]
    )
    blocks: tuple[BlockList, ...] = ()
    site: SiteRule = generic_site
    layout: LayoutRule = _no_layout
    main_call: Callable[[nn.Module, int], bool] = _first_call
    calls_a_row: bool = False
    text: TextRule = _no_text
    leaves_out: Callable[[Mapping[str, Any]], bool] = _never

    @property
    def is_known(self) -> bool:
        """Whether token layouts are known."""
        return self.layout is not _no_layout


UNKNOWN = Family("unknown", ())
DENOISER_ATTRIBUTES = ("unet", "transformer", "transformer_2", "prior", "decoder")

_MODULES = (
    "unet",
    "unet_motion",
    "unet_3d",
    "kandinsky3",
    "sd3",
    "flux",
    "flux3",
    "krea2",
    "lumina2",
    "z_image",
    "pixart",
    "hunyuan_dit",
    "dit",
    "aura_flow",
    "cogview",
    "qwen",
    "cogvideox",
    "latte",
    "allegro",
    "kandinsky5",
    "cosmos",
    "wan",
    "anyflow",
    "helios",
    "hunyuan_video",
    "hunyuan_video15",
    "hunyuan_image",
    "hidream",
    "ltx",
    "ltx2",
    "motif_video",
    "mochi",
)
_families: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known by the class names of its denoisers."""
    for name in family.classes:
        _families[name] = family
    return family


def find_family(model: nn.Module) -> Family:
    """The family of a denoiser, :data:`UNKNOWN` if its class is in none."""
    _load()
    for cls in type(unwrapped(model)).__mro__:
        if cls.__name__ in _families:
            return _families[cls.__name__]
    return UNKNOWN


def list_families() -> list[Family]:
    """Every family that is known, once each."""
    _load()
    return list({id(_families[name]): _families[name] for name in sorted(_families)}.values())


def _load() -> None:
    for name in _MODULES:
        import_module(f"attnctl.families.{name}")
