"""One training loop for all stages: several workers, wall-clock schedule, checkpoints that resume.

On a CPU, two single-threaded workers with a core each are faster than one worker with two
threads. Each takes its own optimiser steps; every few steps their weights are averaged.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

LossFunction = Callable[[float, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast to train.

    Attributes:
        minutes: Wall-clock budget, summed over resumed runs; ``None`` if ``steps`` is given.
        steps: Number of optimiser steps; ``None`` if ``minutes`` is given.
        learning_rate: Peak rate; it warms up over ``warmup_steps``, then falls as a cosine to 2 %.
        ema_decay: Decay of the moving average of the weights, per step.
        average_every: Steps between two averagings of the workers' weights.
        save_every: Steps between two checkpoints.
        keep_minutes: Every so often the moving average is kept in a file of its own; 0 is never.
    """

    minutes: float | None
    steps: int | None = None
    learning_rate: float = 7e-4
    warmup_steps: int = 100
    ema_decay: float = 0.999
    average_every: int = 5
    save_every: int = 100
    keep_minutes: float = 0.0
    weight_decay: float = 1e-3

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps, not both and not neither")


@dataclass(frozen=True)
class Team:
    """The workers that train together; a team of one needs no communication."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join(rank: int, size: int, meeting_file: Path) -> "Team":
        """Join a team through a file that no earlier team has used."""
        if size > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=size
            )
        return Team(rank, size)

    def leave(self) -> None:
        """End the communication, before this process ends: its threads must not outlive it."""
        if self.size > 1:
            dist.destroy_process_group()

    def average(self, tensors: Sequence[Tensor], number: float) -> float:
        """Average tensors over the team, in place, and return the average of ``number``."""
        if self.size == 1:
            return number
        flat = torch.cat([t.detach().flatten().float() for t in tensors] + [torch.tensor([number])])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for tensor in tensors:
            tensor.data.copy_(flat[start : start + tensor.numel()].view_as(tensor))
            start += tensor.numel()
        return float(flat[-1])


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and rename it, so that a file that exists is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    os.replace(temporary, path)


class Loop:
    """Train a module on a loss function until the schedule ends.

    Args:
        module: What is trained; parameters with ``requires_grad=False`` stay as they are.
        loss: Called with the progress in [0, 1] and this worker's generator; returns the loss
            and numbers for the curve.
        settings: Schedule.
        folder: Where ``latest.pt``, ``curve.jsonl`` and kept averages are written by worker 0.
        team: The workers that train together.
        seed: Start of the random numbers of worker 0; each worker draws its own.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: LossFunction,
        settings: LoopSettings,
        folder: Path,
        team: Team | None = None,
        seed: int = 0,
    ) -> None:
        self.module, self.loss, self.settings = module, loss, settings
        self.folder, self.team = folder, team or Team()
        self.trained = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.average = {k: v.detach().clone() for k, v in module.state_dict().items()}
        self.generator = torch.Generator().manual_seed(seed + 7919 * self.team.rank)
        self.step, self.seconds, self.kept = 0, 0.0, 0

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, in [0, 1]."""
        if self.settings.steps is not None:
            return min(1.0, self.step / self.settings.steps)
        return min(1.0, self.seconds / (60 * (self.settings.minutes or 1.0)))

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Begin with the weights of an earlier training, and with a schedule of its own."""
        self.module.load_state_dict(state)
        self.average = {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def resume(self) -> bool:
        """Load ``latest.pt`` if there is one; returns whether there was."""
        path = self.folder / "latest.pt"
        if not path.exists():
            return False
        saved: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(saved["module"])
        self.average = {
            k: v.to(self.average[k].device, self.average[k].dtype)
            for k, v in saved["average"].items()
        }
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.kept = saved["kept"]
        if self.team.rank == 0:
            self.generator.set_state(saved["generator"])
        else:
            # Only worker 0's generator is saved; the others continue on fresh numbers.
            self.generator.manual_seed(self.generator.initial_seed() + 104729 * self.step)
        return True

    def run(self) -> None:
        """Train to the end of the schedule and save."""
        started = time.monotonic() - self.seconds
        numbers: dict[str, float] = {}
        while self.progress < 1.0:
            numbers = self._take_step()
            if self.step % self.settings.average_every == 0:
                self.seconds = self.team.average(self.trained, time.monotonic() - started)
            if self.team.rank == 0:
                self._record(numbers)
        if self.team.rank == 0:
            self.save()

    def _take_step(self) -> dict[str, float]:
        rate = self.settings.learning_rate * self._rate_factor()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss, numbers = self.loss(self.progress, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, 1.0)
        if not (loss.isfinite() and norm.isfinite()):
            raise FloatingPointError(
                f"step {self.step}: loss {float(loss)}, norm of the gradients {float(norm)}; lower"
                " --learning-rate, or leave out --compile; --resume goes on from latest.pt"
            )
        self.optimizer.step()
        self.step += 1
        self._update_average()
        return {"loss": float(loss.detach()), "rate": rate, **numbers}

    def _rate_factor(self) -> float:
        warm = min(1.0, (self.step + 1) / self.settings.warmup_steps)
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.progress)))

    def _update_average(self) -> None:
        # Only worker 0 saves; a young average forgets faster, so that it is never the start value.
        if self.team.rank != 0:
            return
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        state = self.module.state_dict()
        moving = [name for name, value in state.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[k] for k in moving], [state[k] for k in moving], 1 - decay
        )
        for name in state.keys() - set(moving):
            self.average[name].copy_(state[name])

    def _record(self, numbers: dict[str, float]) -> None:
        if self.step % 20 == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            line = {"step": self.step, "seconds": round(self.seconds, 1), **numbers}
            with open(self.folder / "curve.jsonl", "a") as curve:
                curve.write(json.dumps(line) + "\n")
        if self.step % self.settings.save_every == 0:
            self.save()
        period = 60 * self.settings.keep_minutes
        if period and self.seconds >= period * (self.kept + 1):
            self.kept = int(self.seconds // period)
            path = self.folder / f"average-{self.step:06d}.pt"
            write_atomically(path, lambda to: torch.save(self.average, to))

    def save(self) -> None:
        """Write ``latest.pt`` whole or not at all."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "step": self.step,
            "seconds": self.seconds,
            "kept": self.kept,
        }
        write_atomically(self.folder / "latest.pt", lambda to: torch.save(state, to))
