"""Techniques by name: ours, and those of other packages through entry points."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, TypeVar

from attnctl.errors import UnknownTechniqueError, nearest
from attnctl.technique import Technique

ENTRY_POINT_GROUP = "attnctl.techniques"

BUILT_IN = {  # name -> module that registers it; imported when it is asked for
    "agent-attention": "attnctl.techniques.agent_attention",
    "apg": "attnctl.techniques.apg",
    "attend-and-excite": "attnctl.techniques.attend_and_excite",
    "attention-modulation": "attnctl.techniques.attention_modulation",
    "bounded-attention": "attnctl.techniques.bounded_attention",
    "broadway": "attnctl.techniques.broadway",
    "cfg-zero-star": "attnctl.techniques.cfg_zero_star",
    "cross-frame-attention": "attnctl.techniques.cross_frame_attention",
    "dit-flow": "attnctl.techniques.dit_flow",
    "ditctrl": "attnctl.techniques.ditctrl",
    "flatten": "attnctl.techniques.flatten",
    "flo-at": "attnctl.techniques.flo_at",
    "flux-space": "attnctl.techniques.flux_space",
    "focus-on-instruction": "attnctl.techniques.focus_on_instruction",
    "grad-sam": "attnctl.techniques.grad_sam",
    "head-router": "attnctl.techniques.head_router",
    "heat-maps": "attnctl.techniques.heat_maps",
    "ir-diffusion": "attnctl.techniques.ir_diffusion",
    "item-guidance": "attnctl.techniques.item_guidance",
    "masa-ctrl": "attnctl.techniques.masa_ctrl",
    "motion-flow": "attnctl.techniques.motion_flow",
    "nag": "attnctl.techniques.nag",
    "pag": "attnctl.techniques.soft_pag",
    "prime-composer": "attnctl.techniques.prime_composer",
    "prompt-to-prompt": "attnctl.techniques.prompt_to_prompt",
    "re-ttention": "attnctl.techniques.rettention",
    "real-craft": "attnctl.techniques.real_craft",
    "region-words": "attnctl.techniques.region_words",
    "rf-control": "attnctl.techniques.rf_control",
    "seg": "attnctl.techniques.seg",
    "slg": "attnctl.techniques.slg",
    "soft-pag": "attnctl.techniques.soft_pag",
    "sparse-attention": "attnctl.techniques.sparse_attention",
    "stable-flow": "attnctl.techniques.stable_flow",
    "token-downsampling": "attnctl.techniques.token_downsampling",
    "token-flow": "attnctl.techniques.token_flow",
    "token-merging": "attnctl.techniques.token_merging",
    "tpg": "attnctl.techniques.tpg",
    "trajectory-replay": "attnctl.techniques.trajectory_replay",
    "vico": "attnctl.techniques.vico",
    "vstar": "attnctl.techniques.vstar",
    "word-swap": "attnctl.techniques.word_swap",
}
_registered: dict[str, type[Technique]] = {}
T = TypeVar("T", bound=Technique)


@dataclass(frozen=True, slots=True)
class ParameterRecord:
    """One parameter of a technique."""

    name: str
    type: str
    default: str
    help: str


@dataclass(frozen=True, slots=True)
class TechniqueRecord:
    """What a person wants to know of a technique before using it."""

    name: str
    class_name: str
    summary: str
    parameters: tuple[ParameterRecord, ...]
    needs: str
    families: str
    reference: str


def register(name: str) -> Callable[[type[T]], type[T]]:
    """Make a technique known under a kebab-case name (class decorator)."""

    def remember(cls: type[T]) -> type[T]:
        cls.name = name
        _registered[name] = cls
        return cls

    return remember


def techniques() -> dict[str, type[Technique]]:
    """All techniques by name, those of installed packages included."""
    for module in BUILT_IN.values():
        import_module(module)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name not in _registered:
            cls = point.load()
            cls.name = cls.name or point.name
            _registered[point.name] = cls
    return dict(sorted(_registered.items()))


def find_technique(name: str) -> type[Technique]:
    """The technique of that name.

    Raises:
        UnknownTechniqueError: there is none; the message has the nearest names.
    """
    if name not in _registered and name in BUILT_IN:
        import_module(BUILT_IN[name])
    if name in _registered:
        return _registered[name]
    known = techniques()
    if name not in known:
        raise UnknownTechniqueError(f"unknown technique {name!r}; {nearest(name, known)}")
    return known[name]


def build(name: str, parameters: Mapping[str, Any]) -> Technique:
    """Build a technique from its name and plain values.

    Raises:
        UnknownTechniqueError: no technique has that name.
        UnknownParameterError: a key is no parameter of it.
        SettingError: a value cannot be used.
    """
    return find_technique(name).from_settings(parameters)


def list_techniques() -> list[TechniqueRecord]:
    """A record of each technique, for people and forms."""
    return [_record(name, cls) for name, cls in techniques().items()]


def _record(name: str, cls: type[Technique]) -> TechniqueRecord:
    doc = inspect.getdoc(cls) or ""
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Technique) and base is not Technique:
            helps |= _attribute_help(inspect.cleandoc(base.__doc__ or ""))
    parameters = tuple(
        ParameterRecord(
            f.name, _type_name(f.type), _default(f), helps.get(f.name, _COMMON_HELP.get(f.name, ""))
        )
        for f in dataclasses.fields(cls)
    )
    summary = doc.split("\n\n")[0].replace("\n", " ")
    needs = ", ".join(sorted(_needs(cls))) or "nothing but the output"
    return TechniqueRecord(
        name, cls.__name__, summary, parameters, needs, cls.families, cls.reference
    )


def _needs(cls: type[Technique]) -> set[str]:
    phrases = {
        "loss": "a gradient forward",
        "attend": "its own kernel",
        "edit_scores": "the whole attention map",
        "edit_probs": "the whole attention map",
        "read": "attention columns",
        "after_step": "the latents after each step",
        "edit_prediction": "the prediction",
        "edit_output": "the attention output",
        "edit_qkv": "query, key and value",
        "module_hooks": "the model's blocks",
    }
    return {
        text
        for method, text in phrases.items()
        if getattr(cls, method) is not getattr(Technique, method)
    }


_COMMON_HELP = {
    "steps": "when it acts: '0-50%', '0-25', '3,7,11', 'every 5', with an optional ramp",
    "where": "which attention sites: 'self', 'mid:self', 'res=16', 'layers=7-9', 'heads=0+5'",
}


def _attribute_help(doc: str) -> dict[str, str]:
    """Read the ``Attributes:`` or ``Args:`` section of a docstring."""
    helps: dict[str, str] = {}
    current = ""
    inside = False
    for line in doc.splitlines():
        if line.strip() in ("Attributes:", "Args:"):
            inside = True
        elif inside and line and not line.startswith(" "):
            inside = False
        elif inside and line.startswith("    ") and not line.startswith("     "):
            current, _, text = line.strip().partition(":")
            helps[current] = text.strip()
        elif inside and current and line.strip():
            helps[current] += " " + line.strip()
    return helps


def _type_name(annotation: Any) -> str:
    return (
        annotation
        if isinstance(annotation, str)
        else getattr(annotation, "__name__", str(annotation))
    )


def _default(spec: "dataclasses.Field[Any]") -> str:
    if spec.default is not dataclasses.MISSING:
        return str(spec.default)
    if spec.default_factory is not dataclasses.MISSING:
        return str(spec.default_factory())
    return "required"
