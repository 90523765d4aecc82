"""A technique for searches: whole blocks of a transformer are left out."""

from dataclasses import dataclass
from typing import ClassVar

from attnctl.blocks import ModelParts
from attnctl.engine.needs import ModuleHook
from attnctl.technique import Technique


@dataclass(frozen=True)
class BypassedBlocks(Technique):
    """Leave blocks out, for every row: their outputs are their inputs.

    Attributes:
        blocks: Block indices in execution order, from 0.
    """

    name: ClassVar[str] = "bypassed-blocks"

    blocks: tuple[int, ...] = ()

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        """Skip each of the blocks; refuses numbers that the model has not got."""
        chosen = model.blocks_at(self.name, self.blocks)
        return tuple(ModuleHook(block.path, "skip", streams=block.streams) for block in chosen)
