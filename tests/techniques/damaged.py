"""Perturbed guidance written out: a second forward of a damaged model, next to the pipeline's."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import attnctl
from attnctl import Technique
from attnctl.engine.planner import Planner
from tests.support.pipelines import generate

ROWS = (
    "hidden_states",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "timestep",
    "pooled_projections",
    "guidance",
)
Damage = Callable[[nn.Module], AbstractContextManager[None]]


def guided_by_hand(pipe: Any, damage: Damage, scale: float) -> Tensor:
    """Run a pipeline whose transformer adds ``scale (cond - damaged cond)`` to every row.

    With two rows the second is the conditional one; with one row the first call at a timestep is,
    and its term is kept for the second.
    """
    model = pipe.transformer
    whole, kept = model.forward, {"timestep": None, "term": None}

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args:
            kwargs |= dict(zip(("hidden_states", "timestep"), args, strict=False))
        output = whole(**kwargs)
        given = kwargs["hidden_states"]
        now = torch.as_tensor(kwargs["timestep"]).flatten()[0].item()
        if kept["timestep"] != now:
            rows = given.shape[0]
            half = {n: _last(v, rows) if n in ROWS else v for n, v in kwargs.items()}
            with damage(model):
                worse = whole(**half)[0]
            kept["timestep"], kept["term"] = now, scale * (output[0][-1:] - worse)
        return (output[0] + kept["term"], *output[1:])

    model.forward = forward
    try:
        return generate(pipe)
    finally:
        del model.forward


def _last(value: Any, rows: int) -> Any:
    is_batched = isinstance(value, Tensor) and value.dim() and value.shape[0] == rows
    return value[-1:] if is_batched else value


@contextmanager
def without_blocks(model: nn.Module, stacks: dict[str, Iterable[int]]) -> Generator[None]:
    """Take blocks out of a model's lists inside this ``with`` block."""
    before = {name: getattr(model, name) for name in stacks}
    try:
        for name, removed in stacks.items():
            kept = [block for n, block in enumerate(before[name]) if n not in set(removed)]
            setattr(model, name, nn.ModuleList(kept))
        yield
    finally:
        for name, blocks in before.items():
            setattr(model, name, blocks)


def assert_same_effect(ours: Tensor, theirs: Tensor, plain: Tensor, exact: float = 1e-4) -> None:
    """Both steer, and alike up to ``exact`` of the effect (and the rounding of the latents)."""
    effect = float((theirs - plain).abs().max())
    rounding = 1e-5 * max(1.0, float(plain.abs().max()))
    assert effect > 1e-3
    assert float((ours - theirs).abs().max()) < max(exact * effect, rounding)


def steered(pipe: Any, *techniques: Technique, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, list(techniques)):
        return generate(pipe, **changes)


def in_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be replayed."""
    monkeypatch.setattr(Planner, "added_sites", lambda *_: None)


@contextmanager
def counted(module: nn.Module) -> Generator[list[int]]:
    """Count the forwards of a module; the list holds the batch size of each."""
    seen: list[int] = []

    def count(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        first = args[0] if args else kwargs["hidden_states"]
        seen.append(first.shape[0])

    hook = module.register_forward_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()
