"""Replay: an added row's forward starts at the first block that treats it differently.

Up to that block an added row equals the row that it shadows, so what the earlier blocks gave in
the pipeline's own forward is kept and given again.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attnctl.hooks import replaced_forward
from attnctl.rows import select_rows
from attnctl.sites import BlockList


class Replay:
    """Keeps what the blocks before ``first`` gave, and lets them give it again.

    Args:
        model: The denoiser.
        stacks: Its blocks in execution order.
        paths: Modules where added rows are treated differently.

    Attributes:
        first: Path of the first block that runs again; empty if it is the first of all.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[BlockList], paths: Sequence[str]) -> None:
        self._blocks, self.first = _earlier_blocks(model, stacks, paths)
        self._kept: dict[int, Any] = {}

    @property
    def is_worthwhile(self) -> bool:
        """Whether any block comes before the first site."""
        return bool(self._blocks)

    def capture(self) -> Callable[[], None]:
        """Keep the blocks' outputs from now on; return what stops it."""
        stack = ExitStack()
        for position, (block, is_kept) in enumerate(self._blocks):
            if is_kept:
                handle = block.register_forward_hook(self._keeper(position))
                stack.callback(handle.remove)
        return stack.close

    @contextmanager
    def play(self, rows: int, shadowed: Sequence[int]) -> Generator[None]:
        """Let the blocks give again, for the rows ``shadowed`` of ``rows``, what was kept."""
        last: Any = None
        with ExitStack() as stack:
            for position in reversed(range(len(self._blocks))):
                block, is_kept = self._blocks[position]
                if is_kept:
                    last = select_rows(self._kept[position], rows, shadowed)
                stack.enter_context(replaced_forward(block, _giver(last)))
            yield

    def clear(self) -> None:
        """Drop what was kept."""
        self._kept.clear()

    def _keeper(self, position: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self._kept[position] = output

        return keep


def _earlier_blocks(
    model: nn.Module, stacks: Sequence[BlockList], paths: Sequence[str]
) -> tuple[list[tuple[nn.Module, bool]], str]:
    """Blocks before the first that is, or holds, one of ``paths``; and the path of that one.

    With each block goes whether its output is needed.
    """
    found: list[tuple[nn.Module, bool]] = []
    for stack in stacks:
        part = getattr(model, stack.path, None)
        if part is None:
            continue
        is_list = isinstance(part, nn.ModuleList)
        blocks = list(part) if is_list else [part]
        mine: list[nn.Module] = []
        first = ""
        for index, block in enumerate(blocks):
            path = f"{stack.path}.{index}" if is_list else stack.path
            if any(f"{one}.".startswith(f"{path}.") for one in paths):
                first = path
                break
            mine.append(block)
        found += [(b, stack.skips or b is mine[-1]) for b in mine]
        if first:
            return found, first
    return [], ""


def _giver(output: Any) -> Callable[..., Any]:
    def give(*args: Any, **kwargs: Any) -> Any:
        return output

    return give
