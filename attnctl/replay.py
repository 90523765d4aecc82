"""Replay: an added row's forward starts at the first block that treats it differently.

Up to that block an added row equals the row that it shadows, so what the earlier blocks gave in
the pipeline's own forward is kept and given again.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from attnctl.rows import select_rows
from attnctl.sites import BlockList


class Replay:
    """Keeps what the blocks before ``first`` gave, and lets them give it again.

    Args:
        model: The denoiser.
        stacks: Its blocks in execution order.
        paths: Paths of the sites where added rows are treated differently.
    """

    def __init__(self, model: nn.Module, stacks: Sequence[BlockList], paths: Sequence[str]) -> None:
        self._blocks = _earlier_blocks(model, stacks, paths)
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
                stack.enter_context(_giving(block, last))
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
) -> list[tuple[nn.Module, bool]]:
    """Blocks before the first that holds one of ``paths``, and whether their output is needed."""
    found: list[tuple[nn.Module, bool]] = []
    for stack in stacks:
        part = getattr(model, stack.path, None)
        if part is None:
            continue
        is_list = isinstance(part, nn.ModuleList)
        blocks = list(part) if is_list else [part]
        mine: list[nn.Module] = []
        is_reached = False
        for index, block in enumerate(blocks):
            path = f"{stack.path}.{index}." if is_list else f"{stack.path}."
            is_reached = any(site.startswith(path) for site in paths)
            if is_reached:
                break
            mine.append(block)
        found += [(b, stack.skips or b is mine[-1]) for b in mine]
        if is_reached:
            return found
    return []


@contextmanager
def _giving(block: nn.Module, output: Any) -> Generator[None]:
    """Let a block return ``output`` inside this ``with`` block."""
    had, before = "forward" in block.__dict__, block.__dict__.get("forward")
    block.__dict__["forward"] = lambda *args, **kwargs: output  # pyright: ignore[reportUnknownLambdaType]
    try:
        yield
    finally:
        if had:
            block.__dict__["forward"] = before
        else:
            del block.__dict__["forward"]
