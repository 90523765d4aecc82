"""Small pictures under sparse attention: what the tests of its techniques share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import attnctl
from attnctl.calls import AttentionCall, Layout, Pass, Row, Step
from attnctl.engine.cache import SiteCache
from attnctl.report import Report
from attnctl.sites import Site
from attnctl.techniques.sparse_attention import SparseState
from tests.support.pipelines import generate

SMALL = {"block": 16, "least_tokens": 0}  # tiny pipelines have 64 to 256 image tokens
SITES = {"sd1": "self", "sd3": "joint", "flux": "joint", "pixart_sigma": "self"}
SITES |= {"cogvideox": "joint", "wan": "self", "animatediff": "self"}


def steered(pipe: Any, techniques: Any, **changes: Any) -> Tensor:
    """Run a tiny pipeline with techniques."""
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


def run_with_report(pipe: Any, techniques: Any, **changes: Any) -> tuple[Tensor, Report]:
    """The same, and what the report says."""
    with attnctl.attach(pipe, techniques) as session:
        return generate(pipe, **changes), session.report()


@dataclass
class Bench:
    """Attention calls of one site, without a model: a technique's maths at exact inputs.

    Attributes:
        technique: Sparse attention of some kind.
        layout: How the tokens lie.
        rows: Rows of every call.
    """

    technique: Any
    layout: Layout
    rows: Sequence[Row] = (Row("uncond", 0), Row("cond", 0))
    kind: str = "main"

    def __post_init__(self) -> None:
        self.report = Report()
        self.cache = SiteCache(self.report)
        self.state = SparseState(self.report.warn, self.report.note, set())

    def call(self, index: int, tensors: Sequence[Tensor], stage: int = 0) -> AttentionCall:
        """A call at a step."""
        query, key, value = tensors
        site = Site("unet", "mid.attn1", "self", "mid", 0, 0, query.shape[1])
        return AttentionCall(
            site=site,
            layout=self.layout,
            step=Step(index, 20, stage),
            pass_=Pass(self.kind, 0, tuple(self.rows)),  # type: ignore[arg-type]
            query=query,
            key=key,
            value=value,
            mask=None,
            scale=query.shape[-1] ** -0.5,
            state=self.state,
            owner=self.technique.name,
            cache=self.cache,
        )

    def attend(self, index: int, tensors: Sequence[Tensor], **more: Any) -> Tensor:
        """The technique's attention at a step."""
        return self.technique.attend(self.call(index, tensors, **more))


def random_tensors(
    tokens: int, *, rows: int = 2, heads: int = 2, width: int = 8, seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Query, key and value with clearly peaked attention."""
    source = torch.Generator().manual_seed(seed)
    shape = (3, rows, heads, tokens, width)
    query, key, value = torch.randn(shape, generator=source, dtype=torch.float64).to(dtype)
    return 1.5 * query, key, value


def dense(tensors: Sequence[Tensor]) -> Tensor:
    """Softmax attention as written."""
    return probabilities(tensors) @ tensors[2]


def probabilities(tensors: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
    """The attention map as written."""
    query, key, _ = tensors
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


Change = Callable[[], dict[str, Any]]
