"""Recorders: fill a feature store from a run, without changing it.

They are no recipe's business: the store that they fill is the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import AttentionCall, RunStart
from attnctl.editing.features import FeatureStore
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import SettingError
from attnctl.technique import Technique

RECORDED = ("query", "key", "value", "out")


@dataclass(frozen=True)
class AttentionRecorder(Technique):
    """Record query, key, value or output of attention sites, for the main rows of one branch.

    Query, key and value are those that attention really used, after the edits of techniques;
    ``"out"`` is its output before the output projection. Each is ``(items * fold, H, tokens, D)``.

    Attributes:
        store: Where they go, by timestep and path of the site.
        what: Some of ``"query"``, ``"key"``, ``"value"`` and ``"out"``.
        branch: Guidance branch.
    """

    name: ClassVar[str] = "attention-recorder"
    can_repeat: ClassVar[bool] = True

    store: FeatureStore
    what: Sequence[str] = ("query", "key")
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        what = (self.what,) if isinstance(self.what, str) else tuple(self.what)
        if not what or any(one not in RECORDED for one in what):
            raise SettingError(f"{self.name}: what={self.what!r} must be some of {RECORDED}")
        object.__setattr__(self, "what", what)

    def settings(self) -> dict[str, Any]:
        """Plain values; the store is not one of them."""
        return {name: value for name, value in super().settings().items() if name != "store"}

    def begin(self, run: RunStart) -> None:
        self.store.open(run.fingerprint())

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        if call.pass_.kind != "main":
            return out
        at = call.pick(branch=self.branch, kind="main")
        given = {"query": call.query, "key": call.key, "value": call.value, "out": out}
        for what in self.what if len(at) else ():
            tensor = given[what]
            rows = tensor if len(at) == len(tensor) else tensor[at]
            self.store.put(call.step.timestep, call.site.path, what, rows)
        return out


@dataclass(frozen=True)
class ModuleRecorder(Technique):
    """Record the outputs of modules, such as residual features, for the main rows of one branch.

    Attributes:
        store: Where they go, by timestep and path of the module, as ``"output"``.
        modules: Dotted paths, such as ``"up_blocks.1.resnets.0.conv2"``.
        branch: Guidance branch.
        where: No effect: modules are named by their paths.
    """

    name: ClassVar[str] = "module-recorder"
    can_repeat: ClassVar[bool] = True

    store: FeatureStore
    modules: Sequence[str]
    branch: str = "cond"

    def __post_init__(self) -> None:
        super().__post_init__()
        modules = (self.modules,) if isinstance(self.modules, str) else tuple(self.modules)
        if not modules:
            raise SettingError(f"{self.name}: modules is empty; name the modules to record")
        object.__setattr__(self, "modules", modules)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        return tuple(ModuleHook(path, "after", "record") for path in self.modules)

    def settings(self) -> dict[str, Any]:
        """Plain values; the store is not one of them."""
        return {name: value for name, value in super().settings().items() if name != "store"}

    def begin(self, run: RunStart) -> None:
        self.store.open(run.fingerprint())

    def record(self, call: ModuleCall) -> None:
        """Keep the output of a hooked module."""
        output: Any = call.output[0] if isinstance(call.output, tuple | list) else call.output
        at = call.pick(output, kind="main", branch=self.branch)
        if len(at):
            rows = output if len(at) == len(output) else output[at]
            self.store.put(call.step.timestep, call.path, "output", rows)
