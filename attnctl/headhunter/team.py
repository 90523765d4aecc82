"""The processes of one search, under ``accelerate launch`` or ``torchrun``, or one alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from attnctl.errors import AttnctlError

_PATIENCE = timedelta(days=30)
"""A process that is done early waits so long for the others of its round."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """Which of how many processes this one is.

    Attributes:
        index: From 0; process 0 writes what belongs to all.
        count: Number of processes.
        device: Where this process computes; ``None`` leaves the choice.
    """

    index: int = 0
    count: int = 1
    device: str | None = None

    @staticmethod
    def join() -> Team:
        """Join the processes that a launcher started; a process without one is alone."""
        wanted = int(os.environ.get("WORLD_SIZE", "1"))
        if wanted < 2:
            return Team()
        import torch
        from accelerate import PartialState

        # Without cpu=True, processes on a machine without a GPU would each believe to be alone.
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
        if state.num_processes != wanted:
            raise AttnctlError(
                f"the launcher started {wanted} processes, but they found {state.num_processes}"
            )
        name = str(state.device)
        device = "cpu" if name.startswith("cpu") else name  # it may say "cpu:1"
        return Team(state.process_index, state.num_processes, device)

    @property
    def is_first(self) -> bool:
        """Whether this process writes and says what belongs to all."""
        return self.index == 0

    def share(self, work: Sequence[T]) -> list[T]:
        """The part of ``work`` that falls to this process, whatever is done already."""
        return list(work[self.index :: self.count])

    def leave(self) -> None:
        """Part from the other processes, at the very end."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
