"""Which modules of a denoiser are hooked in a pass, by which technique."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from attnctl.blocks import ModelParts
from attnctl.engine.needs import ModuleHook
from attnctl.engine.roles import Pass
from attnctl.errors import AttnctlError, CompiledModelError
from attnctl.sites import is_compiled
from attnctl.technique import Technique


@dataclass(frozen=True, slots=True)
class ModuleLink:
    """One technique at one module and step."""

    technique: Technique
    label: str
    strength: float
    hook: ModuleHook


class ModulePlanner:
    """Module hooks of the techniques of one session.

    Args:
        techniques: In the order of the chain, with their labels.
        parts: What each denoiser offers.

    Raises:
        NoSiteError: no denoiser has what a technique asks for.
    """

    def __init__(
        self, techniques: Mapping[str, Technique], parts: Mapping[str, ModelParts]
    ) -> None:
        self._techniques = dict(techniques)
        self._hooks = {
            label: _hooks_of(technique, tuple(parts.values()))
            for label, technique in techniques.items()
            if technique.overrides("module_hooks")
        }

    def plans(
        self, denoiser: str, index: int, total: int | None, pass_: Pass
    ) -> dict[str, tuple[ModuleLink, ...]]:
        """Links of each module that is hooked in a pass, by path."""
        links: dict[str, list[ModuleLink]] = {}
        for label, of_denoisers in self._hooks.items():
            technique = self._techniques[label]
            hooks = of_denoisers.get(denoiser, ())
            strength = technique.strength_at(index, total) if hooks else 0.0
            kind = technique.edits_rows
            has_rows = kind is None or any(row.fits(label, kind) for row in pass_.rows)
            if strength == 0.0 or not has_rows:
                continue
            for hook in hooks:
                links.setdefault(hook.path, []).append(ModuleLink(technique, label, strength, hook))
        return {path: tuple(chain) for path, chain in links.items()}

    def paths(self, denoiser: str, label: str) -> list[str]:
        """Modules of a denoiser that a technique hooks."""
        return [hook.path for hook in self._hooks.get(label, {}).get(denoiser, ())]

    def all_paths(self, label: str) -> tuple[str, ...]:
        """Modules that a technique hooks, with the denoiser before each."""
        of_denoisers = self._hooks.get(label, {})
        return tuple(f"{name}.{h.path}" for name, hooks in of_denoisers.items() for h in hooks)

    def labels_at(self, denoiser: str) -> list[str]:
        """Labels of the techniques that hook modules of a denoiser."""
        return [label for label in self._hooks if self.paths(denoiser, label)]

    @property
    def users(self) -> Mapping[str, Sequence[str]]:
        """Hooked modules of each denoiser."""
        names = {name for of_denoisers in self._hooks.values() for name in of_denoisers}
        return {n: [p for label in self._hooks for p in self.paths(n, label)] for n in names}


def _hooks_of(
    technique: Technique, parts: Sequence[ModelParts]
) -> dict[str, tuple[ModuleHook, ...]]:
    """Hooks by denoiser; a denoiser that lacks what is asked for counts if no other has it."""
    found: dict[str, tuple[ModuleHook, ...]] = {}
    refusal: AttnctlError | None = None
    for one in parts:
        try:
            found[one.denoiser] = technique.module_hooks(one)
        except AttnctlError as error:
            refusal = refusal or error
    if refusal is not None and not found:
        raise refusal
    return found


def refuse_compiled(model: nn.Module, labels: Sequence[str]) -> None:
    """Refuse module hooks on a model that would ignore them.

    Raises:
        CompiledModelError: the model, or a part of it, is compiled.
    """
    if is_compiled(model):
        raise CompiledModelError(
            f"{', '.join(labels)} needs module hooks, which a compiled model ignores; attach to "
            "the model without torch.compile"
        )
