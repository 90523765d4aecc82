"""Hooks: forward hooks that the compiler leaves alone, and a `forward` replaced for a while."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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


@contextmanager
def replaced_forward(module: nn.Module, function: Callable[..., Any]) -> Generator[None]:
    """Let ``function`` stand in for the ``forward`` of one module inside this ``with`` block."""
    had, before = "forward" in module.__dict__, module.__dict__.get("forward")
    module.__dict__["forward"] = function
    try:
        yield
    finally:
        if had:
            module.__dict__["forward"] = before
        else:
            del module.__dict__["forward"]


def do_nothing(*args: Any) -> None:
    """What a hook becomes in a copy of its model."""


def _nothing() -> Callable[..., None]:
    return do_nothing
