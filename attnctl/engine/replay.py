"""Replay: an added row is computed from the first block on that treats it differently.

Up to that block an added row equals the row that it shadows. So the earlier blocks compute the
pipeline's own rows alone, and what they give to a shadowed row is given to the added one again.
From then on all rows share one batch: a forward of its own would read every weight once more,
which on small latents costs as much as a row.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor, nn

from attnctl.engine.hooks import replaced_forward
from attnctl.sites import BlockList


class Replay:
    """Spares added rows the blocks before ``first``.

    Args:
        model: The denoiser.
        stacks: Its blocks in execution order.
        paths: Modules where added rows are treated differently.

    Attributes:
        first: Path of the first block that computes added rows; empty if it is the first of all.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[BlockList], paths: Sequence[str]) -> None:
        self._blocks, self.first = _earlier_blocks(model, stacks, paths)

    @property
    def is_worthwhile(self) -> bool:
        """Whether any block comes before the first site."""
        return bool(self._blocks)

    def install(
        self,
        own: int,
        shadowed: Sequence[int],
        alone: Callable[[], AbstractContextManager[None]],
    ) -> Callable[[], None]:
        """Let the earlier blocks compute the first ``own`` rows alone; return what ends that.

        Args:
            own: Rows of the pipeline, in front of the added ones.
            shadowed: For each added row, which of them it shadows.
            alone: Entered around each block that computes them alone.
        """
        with ExitStack() as stack:
            for block in self._blocks:
                spared = _SparedBlock(block.forward, own, shadowed, alone)
                stack.enter_context(replaced_forward(block, spared))
            return stack.pop_all().close


class _SparedBlock:
    """Stands in for the ``forward`` of a block: the own rows go in, all rows come out."""

    def __init__(
        self,
        inner: Callable[..., Any],
        own: int,
        shadowed: Sequence[int],
        alone: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._inner, self._own, self._alone = inner, own, alone
        self._all = [*range(own), *shadowed]
        self._rows = len(self._all)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fold = fold_of(args[0] if args else kwargs.get("hidden_states"), self._rows)
        if fold is None:
            return self._inner(*args, **kwargs)

        def with_added(tensor: Tensor) -> Tensor:
            if tensor.shape[:1] != (self._own * fold,):
                return tensor
            return tensor.unflatten(0, (self._own, fold))[self._all].flatten(0, 1)

        args, kwargs = leading_rows((args, kwargs), self._rows, self._own, fold)
        with self._alone():
            output = self._inner(*args, **kwargs)
        return _each_tensor(output, with_added)


def fold_of(hidden: Any, rows: int) -> int | None:
    """Batch entries per row; ``None`` if rows cannot be told from other axes by their number.

    Args:
        hidden: The main stream that a block is given, ``(rows * fold, tokens, C)`` or
            ``(rows * fold, C, height, width)``.
        rows: Rows of the forward.
    """
    if not isinstance(hidden, Tensor) or hidden.dim() < 3 or hidden.shape[0] % rows:
        return None
    # Positions of tokens have no axis of rows: there must be more tokens than batch entries.
    if hidden.dim() == 3 and hidden.shape[1] <= hidden.shape[0]:
        return None
    return hidden.shape[0] // rows


def leading_rows(value: Any, rows: int, kept: int, fold: int) -> Any:
    """The first ``kept`` of ``rows`` in every tensor of a value whose axis 0 is rows (x fold)."""

    def lead(tensor: Tensor) -> Tensor:
        for size in (fold, 1):
            if tensor.shape[:1] == (rows * size,):
                return tensor[: kept * size]
        return tensor

    return _each_tensor(value, lead)


def _each_tensor(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _each_tensor(one, change) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_tensor(one, change) for one in value)
    return value


def _earlier_blocks(
    model: nn.Module, stacks: Sequence[BlockList], paths: Sequence[str]
) -> tuple[list[nn.Module], str]:
    """Blocks before the first that is, or holds, one of ``paths``; and the path of that one."""
    found: list[nn.Module] = []
    for stack in stacks:
        part = getattr(model, stack.path, None)
        if part is None:
            continue
        is_list = isinstance(part, nn.ModuleList)
        for index, block in enumerate(part if is_list else [part]):
            path = f"{stack.path}.{index}" if is_list else stack.path
            inside = [one for one in paths if f"{one}.".startswith(f"{path}.")]
            if inside:
                return found + _earlier_parts(block, path, inside), path
            found.append(block)
    return [], ""


def _earlier_parts(block: nn.Module, path: str, inside: Sequence[str]) -> list[nn.Module]:
    """Parts of a UNet block that run before the first of the attentions that ``inside`` names.

    Such a block runs residual block ``i``, then attention ``i``; the middle one has a residual
    block more at its end.
    """
    resnets, attentions = getattr(block, "resnets", None), getattr(block, "attentions", None)
    if not (isinstance(resnets, nn.ModuleList) and isinstance(attentions, nn.ModuleList)):
        return []
    names = [one.removeprefix(f"{path}.").split(".") for one in inside]
    if any(name[0] != "attentions" for name in names):
        return []
    first = min(int(name[1]) for name in names)
    return [*list(resnets)[: first + 1], *list(attentions)[:first]]
