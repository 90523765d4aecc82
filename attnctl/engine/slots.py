"""Processor slots: where a tap stands, and how the original comes back."""

from typing import Any

from torch import nn

from attnctl.errors import UnsupportedModelError


class ProcessorSlot:
    """A tap in the processor slot of one module; the original comes back on :meth:`restore`.

    Raises:
        UnsupportedModelError: the module's processor cannot be replaced.
    """

    def __init__(self, module: nn.Module, made: Any) -> None:
        self._module, self._tap = module, made
        self._original = module.processor
        self._slot: dict[str, Any] = (
            module._modules if "processor" in module._modules else module.__dict__
        )
        self._is_own = "processor" in self._slot
        self._slot["processor"] = made
        if module.processor is not made:
            self.restore()
            raise UnsupportedModelError(
                f"the processor of {type(module).__name__} cannot be replaced (it is computed, not "
                "stored); select other sites with where="
            )

    @property
    def is_in_place(self) -> bool:
        """Whether nobody has replaced the tap."""
        return self._slot.get("processor") is self._tap

    def restore(self) -> None:
        """Put the original back, unless somebody has put another processor there."""
        if not self.is_in_place:
            return
        if self._is_own:
            self._slot["processor"] = self._original
        else:
            del self._slot["processor"]
