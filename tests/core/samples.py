"""Small techniques of a user's kind that the tests of the core attach."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from attnctl import AttentionCall, Move, Needs, Read, Technique, Where
from attnctl.calls import AddedRow, InputsCall, LatentsCall, PredictionCall, RunStart, Step


@dataclass(frozen=True)
class Identity(Technique):
    """Intercepts every site and changes nothing."""

    name: ClassVar[str] = "identity"

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        return out


@dataclass(frozen=True)
class Temperature(Technique):
    """Scales the queries, by more the stronger it is."""

    name: ClassVar[str] = "temperature"
    factor: float = 3.0

    def edit_qkv(self, call: AttentionCall) -> None:
        call.query = call.query * (1 + (self.factor - 1) * call.strength)


@dataclass(frozen=True)
class Watch(Technique):
    """Keeps every call that it sees."""

    name: ClassVar[str] = "watch"
    seen: list[AttentionCall] = field(default_factory=list[AttentionCall], compare=False)
    needs_layout: bool = False

    def needs(self) -> Needs:
        return Needs(layout=self.needs_layout)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        self.seen.append(call)
        return out

    @property
    def rows_by_step(self) -> dict[int, set[tuple[tuple[str, int], ...]]]:
        """Branch and item of the rows of each forward, by step."""
        found: dict[int, set[tuple[tuple[str, int], ...]]] = {}
        for call in self.seen:
            rows = tuple((row.branch, row.item) for row in call.rows)
            found.setdefault(call.step.index, set()).add(rows)
        return found


@dataclass(frozen=True)
class Failing(Technique):
    """Raises inside an attention site at one step."""

    name: ClassVar[str] = "failing"
    at: int = 1
    error: type[BaseException] = RuntimeError

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        if call.step.index == self.at:
            raise self.error("a fault inside attention")
        return out


@dataclass(frozen=True)
class Climb(Technique):
    """Moves the latents against the attention on the second text token."""

    name: ClassVar[str] = "climb"
    where: Where = field(default=Where("cross"), kw_only=True)
    size: float = 1.0
    evaluations: int = 1

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns", tokens=(1,), grad=True),))

    def begin(self, run: RunStart) -> dict[str, Any]:
        return {"items": run.items, "columns": {}, "losses": [], "steps": []}

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        items = call.state["items"]
        call.state["columns"][call.site.path] = value.unflatten(0, (items, -1)).flatten(1).mean(1)

    def loss(self, state: dict[str, Any], step: Step) -> Tensor:
        loss = torch.stack(list(state["columns"].values())).sum(0)
        state["losses"].append(loss.detach())
        state["steps"].append(step)
        return loss

    def move(self, state: dict[str, Any], step: Step, evaluation: int, loss: Tensor) -> Move:
        return Move(self.size, again=evaluation + 1 < self.evaluations)

    def end(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


@dataclass(frozen=True)
class Shift(Technique):
    """Adds a constant to the latents after each step."""

    name: ClassVar[str] = "shift"
    amount: float = 0.1
    steps_seen: list[Step] = field(default_factory=list[Step], compare=False)

    def after_step(self, call: LatentsCall) -> Tensor:
        self.steps_seen.append(call.step)
        return call.latents + self.amount


@dataclass(frozen=True)
class Perturbed(Technique):
    """Perturbed-attention guidance in small: an added row whose self-attention is the identity."""

    name: ClassVar[str] = "perturbed"
    where: Where = field(default=Where("self"), kw_only=True)
    scale: float = 1.0

    def needs(self) -> Needs:
        return Needs(rows=(AddedRow("perturbed"),))

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        at = call.pick(kind="perturbed")
        return out.index_copy(0, at, call.value[at])

    def edit_prediction(self, call: PredictionCall) -> None:
        call.add(self.scale * (call.get("cond") - call.get("cond", "perturbed")))


@dataclass(frozen=True)
class Dim(Technique):
    """Scales the text before each forward."""

    name: ClassVar[str] = "dim"
    factor: float = 0.5

    def edit_inputs(self, call: InputsCall) -> None:
        text = call.arguments["encoder_hidden_states"]
        call.arguments["encoder_hidden_states"] = text * self.factor


@dataclass(frozen=True)
class Scores(Technique):
    """Adds to the scores of the first key."""

    name: ClassVar[str] = "scores"
    amount: float = 0.0

    def edit_scores(self, call: AttentionCall, scores: Tensor) -> Tensor:
        return torch.cat([scores[..., :1] + self.amount * call.strength, scores[..., 1:]], dim=-1)
