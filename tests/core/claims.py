"""Techniques that claim things for themselves, and the pairs of them that do not go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attnctl import AttentionCall, Needs, Read, Technique
from attnctl.calls import PredictionCall
from tests.core.samples import Climb, Identity


@dataclass(frozen=True)
class Kernel(Technique):
    """Owns the kernel."""

    name: ClassVar[str] = "kernel-owner"

    def attend(self, call: AttentionCall) -> Tensor:
        return call.attend(call.query, call.key, call.value, call.mask)


@dataclass(frozen=True)
class OtherKernel(Kernel):
    """Owns the kernel too."""

    name: ClassVar[str] = "other-kernel"


@dataclass(frozen=True)
class OpenKernel(Kernel):
    """Owns the kernel and can tell the log-sum-exp."""

    name: ClassVar[str] = "open-kernel"
    gives_lse: ClassVar[bool] = True


@dataclass(frozen=True)
class Probabilities(Technique):
    """Edits the map."""

    name: ClassVar[str] = "map-editor"

    def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
        return probs


@dataclass(frozen=True)
class Values(Technique):
    """Replaces keys and values."""

    name: ClassVar[str] = "values"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    def edit_qkv(self, call: AttentionCall) -> None:
        call.key, call.value = call.key.flip(0), call.value.flip(0)


@dataclass(frozen=True)
class OtherValues(Values):
    """Replaces keys and values too."""

    name: ClassVar[str] = "other-values"


@dataclass(frozen=True)
class Queries(Technique):
    """Replaces queries."""

    name: ClassVar[str] = "queries"
    claims: ClassVar[frozenset[str]] = frozenset({"query"})

    def edit_qkv(self, call: AttentionCall) -> None:
        call.query = call.query.flip(0)


@dataclass(frozen=True)
class OtherQueries(Queries):
    """Replaces queries too."""

    name: ClassVar[str] = "other-queries"


@dataclass(frozen=True)
class Reader(Technique):
    """Reads a column."""

    name: ClassVar[str] = "reader"
    raw: bool = False

    def needs(self) -> Needs:
        return Needs(reads=(Read("columns", tokens=(1,), raw=self.raw),))


@dataclass(frozen=True)
class RawReader(Reader):
    """Reads queries and keys before any edit."""

    name: ClassVar[str] = "raw-reader"
    raw: bool = True


@dataclass(frozen=True)
class Guidance(Technique):
    """Writes its own guidance formula."""

    name: ClassVar[str] = "guidance"
    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})

    def edit_prediction(self, call: PredictionCall) -> None:
        call.map(lambda prediction: prediction)


@dataclass(frozen=True)
class OtherGuidance(Guidance):
    """Writes another guidance formula."""

    name: ClassVar[str] = "other-guidance"


@dataclass(frozen=True)
class Adam(Climb):
    """Moves latents with an optimiser of its own."""

    name: ClassVar[str] = "adam"
    claims: ClassVar[frozenset[str]] = frozenset({"optimiser"})


SAMPLES: tuple[type[Technique], ...] = (
    Kernel,
    OtherKernel,
    OpenKernel,
    Probabilities,
    Values,
    OtherValues,
    Queries,
    OtherQueries,
    Reader,
    RawReader,
    Guidance,
    OtherGuidance,
    Climb,
    Adam,
    Identity,
)
# Refused in this order and in the other one; every other pair of samples goes together.
REFUSED = {
    frozenset(pair)
    for pair in (
        (Kernel, OtherKernel),
        (Kernel, OpenKernel),
        (OtherKernel, OpenKernel),
        (Values, OtherValues),
        (Queries, OtherQueries),
        (Guidance, OtherGuidance),
        (Climb, Adam),
        *((k, other) for k in (Kernel, OtherKernel) for other in (Probabilities, Reader)),
        *((k, v) for k in (Kernel, OtherKernel, OpenKernel) for v in (Values, OtherValues)),
        (OpenKernel, Probabilities),
        *((k, c) for k in (Kernel, OtherKernel, OpenKernel) for c in (Climb, Adam)),
    )
}
