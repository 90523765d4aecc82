"""A pipeline's own loop with another guidance formula, made without attnctl.

The scheduler is given what a formula makes of the denoiser's predictions, whatever the pipeline
made of them; a perturbed prediction comes from running the denoiser once more on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from tests.support.pipelines import generate

Formula = Callable[[int, Mapping[str, Tensor]], Tensor]
SEPARATE = ("cond", "uncond")


@contextmanager
def identity_attention(model: nn.Module, paths: Sequence[str]) -> Generator[None]:
    """Let attention modules attend with the identity map: their output is their value."""
    inside: list[bool] = []
    original = torch.nn.functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return value if inside else original(query, key, value, *args, **kwargs)

    handles: list[Any] = []
    for module in map(model.get_submodule, paths):
        handles.append(module.register_forward_pre_hook(lambda *_: inside.append(True)))
        handles.append(module.register_forward_hook(lambda *_: inside.clear()))
    torch.nn.functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
        for handle in handles:
            handle.remove()


def generate_by(
    pipe: DiffusionPipeline,
    formula: Formula,
    branches: Sequence[str] = ("uncond", "cond"),
    perturbed: Sequence[str] = (),
    **changes: Any,
) -> Tensor:
    """Run a pipeline whose scheduler is given the result of a formula.

    Args:
        pipe: A tiny pipeline.
        formula: From the number of the scheduler's step, and the predictions ``(items, ...)`` by
            branch, to what the scheduler is given. Among them are ``"perturbed"``, and
            ``"skipped"`` where a second call follows that of all branches.
        branches: Order of the branches in one batch; of several calls a step, the order in which
            they come is ``cond``, ``uncond``.
        perturbed: Paths of the attention modules that have the identity map in a further forward.
        changes: Arguments of the pipeline.
    """
    calls: list[tuple[nn.Module, Any, Any, Tensor]] = []
    count = 0

    def listen(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((module, args, kwargs, output[0]))

    def step(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        found = _by_branch(calls, branches)
        if perturbed:
            model, inputs, options, _ = calls[0]
            with identity_attention(model, perturbed):
                weak = model.forward(*inputs, **options)[0]
            found["perturbed"] = _by_branch([(weak,)], branches)["cond"]
        if given.shape != found["cond"].shape:  # it learns variances too
            found = {name: one[:, : given.shape[1]] for name, one in found.items()}
        joined = formula(count, found)
        calls.clear()
        count += 1
        return original(joined, *args, **kwargs)

    original = pipe.scheduler.step
    models = [getattr(pipe, n, None) for n in ("unet", "transformer", "transformer_2")]
    handles = [m.register_forward_hook(listen, with_kwargs=True) for m in models if m is not None]
    pipe.scheduler.step = step
    try:
        return generate(pipe, **changes)
    finally:
        del pipe.scheduler.step
        for handle in handles:
            handle.remove()


def _by_branch(calls: Sequence[Any], branches: Sequence[str]) -> dict[str, Tensor]:
    outputs = [call[-1] for call in calls]
    if len(branches) == 1:
        return dict(zip(SEPARATE[: len(outputs)], outputs, strict=True))
    found = dict(zip(branches, outputs[0].chunk(len(branches)), strict=True))
    return found if len(outputs) == 1 else found | {"skipped": outputs[1]}
