"""Forward hooks that the compiler leaves alone and that a copy of a model does not keep."""

from collections.abc import Callable
from typing import Any

import torch


class ForwardHook:
    """A callable for torch's hook registers; a copy of it does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage]
    def __call__(self, *args: Any) -> Any:
        """Pass everything on."""
        return self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return do_nothing

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _nothing, ()


def do_nothing(*args: Any) -> None:
    """What a hook becomes in a copy of its model."""


def _nothing() -> Callable[..., None]:
    return do_nothing
