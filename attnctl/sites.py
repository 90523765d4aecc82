"""Attention sites: where in a denoiser attention is computed, found once when attaching."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from attnctl.errors import UnsupportedModelError

if TYPE_CHECKING:
    from attnctl.families import Family

Kind = Literal["self", "cross", "joint", "temporal"]


@dataclass(frozen=True, slots=True)
class Site:
    """One attention module of a denoiser.

    Attributes:
        denoiser: Attribute of the pipeline that holds the model, such as ``"unet"``.
        path: Dotted path of the attention module in that model.
        kind: What attends to what: image to itself, image to text, both jointly, or over frames.
        stage: ``"down"``, ``"mid"``, ``"up"`` in a UNet; ``"double"``, ``"single"``, ``"block"``;
            ``"control"`` in blocks that read a control clip before the others run.
        index: Position in execution order over all sites of the denoiser.
        layer: Position among the sites of the same kind (``layers=`` counts this).
        level: Halvings of the latents' height and width at this site.
        heads: Number of query heads; 0 if the module does not say.
    """

    denoiser: str
    path: str
    kind: Kind
    stage: str = "block"
    index: int = 0
    layer: int = 0
    level: int = 0
    heads: int = 0


@dataclass(frozen=True, slots=True)
class BlockList:
    """A stack of blocks that run one after the other.

    Attributes:
        path: Attribute of the model, a list of blocks or a single one.
        skips: Later blocks read the outputs of every block, not of the last one alone.
        streams: Arguments that the outputs of a block continue, in the order of the outputs
            (Stable Diffusion 3 and FLUX return the text before the image); empty if unknown.
    """

    path: str
    skips: bool = False
    streams: tuple[str, ...] = ()


def attention_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield ``(path, module)`` for every attention module of a model.

    About twenty transformer classes of diffusers have no ``attn_processors``, so modules are
    found by their ``processor`` alone.
    """
    for path, module in unwrapped(model).named_modules():
        processor = getattr(module, "processor", None)
        if processor is not None and callable(processor):
            yield path, module


def find_sites(name: str, model: nn.Module, family: "Family") -> dict[str, Site]:
    """Describe every attention site of a denoiser, in execution order, by path."""
    drafts: list[Site] = []
    for path, module in attention_modules(model):
        site = family.site(path, module, model_config(model))
        if site is not None:
            drafts.append(replace(site, denoiser=name))
    drafts.sort(key=lambda site: _STAGE_ORDER.get(site.stage, 0))
    seen: dict[str, int] = {}
    sites: dict[str, Site] = {}
    for index, site in enumerate(drafts):
        layer = seen.get(site.kind, 0)
        seen[site.kind] = layer + 1
        sites[site.path] = replace(site, index=index, layer=layer)
    return sites


def generic_site(path: str, module: nn.Module, config: Any) -> Site:
    """Describe a site from what its module says of itself, for models of no known family."""
    return Site("", path, generic_kind(path, module), "block", heads=head_count(module))


def generic_kind(path: str, module: nn.Module) -> Kind:
    """Tell what attends to what from the module's own attributes."""
    if "motion_modules" in path or "temp_attentions" in path or "temporal" in path:
        return "temporal"
    if getattr(module, "added_kv_proj_dim", None) is not None:
        return "joint"
    if getattr(module, "is_cross_attention", False):
        return "cross"
    return "self"


def head_count(module: nn.Module) -> int:
    """Number of query heads, or 0 if the module does not say."""
    for name in ("heads", "num_heads", "n_heads", "num_attention_heads"):
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that ``torch.compile`` wrapped, or the model itself."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or a part of it, runs under ``torch.compile``."""
    if unwrapped(model) is not model:
        return True
    return any(getattr(m, "_compiled_call_impl", None) is not None for m in model.modules())


def model_config(model: nn.Module) -> Any:
    """The model's diffusers configuration, or an empty mapping."""
    return getattr(unwrapped(model), "config", {})


def check_kinds(
    technique: str, sites: Sequence[Site], kinds: Sequence[str], does: str, remedy: str
) -> None:
    """Refuse sites of other kinds of attention than a technique works on.

    Args:
        technique: Name for messages.
        sites: Those that were selected.
        kinds: Allowed kinds.
        does: What it does there, such as ``acts where frames attend to frames``.
        remedy: A selector that fits.

    Raises:
        UnsupportedModelError: a site is of another kind.
    """
    for site in sites:
        if site.kind not in kinds:
            raise UnsupportedModelError(
                f"{technique} {does}; {site.path} is {site.kind} attention. Select other sites,"
                f" such as where='{remedy}'"
            )


_STAGE_ORDER = {"control": -1, "down": 0, "mid": 1, "up": 2, "double": 0, "block": 0, "single": 1}
