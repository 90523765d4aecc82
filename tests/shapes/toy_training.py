"""A training of one small layer, in a module of its own that workers import quickly."""

from pathlib import Path

import torch
from torch import Tensor, nn

from attnctl.shapes.loop import Loop, LoopSettings, Team


def tiny_loop(folder: Path, steps: int, team: Team | None = None) -> Loop:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)

    def loss(progress: float, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        values = torch.randn(8, 4, generator=generator)
        return (model(values) - values).square().mean(), {"progress": progress}

    schedule = LoopSettings(minutes=None, steps=steps, save_every=10, learning_rate=0.05)
    return Loop(model, loss, schedule, folder, team)


def train_in_team(rank: int, folder: Path) -> None:
    team = Team.join(rank, 2, folder / "meeting")
    loop = tiny_loop(folder / str(rank), 20, team)
    loop.run()
    team.leave()
    torch.save(loop.module.state_dict(), folder / f"weights-{rank}.pt")
