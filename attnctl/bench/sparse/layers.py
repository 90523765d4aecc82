"""Observers of attention sites: how far a site is from dense attention, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from attnctl.calls import AttentionCall
from attnctl.report import Report
from attnctl.technique import Technique
from attnctl.where import Where

Place = tuple[int, str]  # step, site with its denoiser in front
DENSE_KERNELS = frozenset({"sdpa", "sdpa-lse", "explicit"})


@dataclass(frozen=True)
class Watch(Technique):
    """Stand at self-attention and change nothing, so that the report tells its time."""

    name: ClassVar[str] = "watch"

    where: Where = field(default=Where("self|joint"), kw_only=True)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        """Give the output as it is."""
        return out


@dataclass(frozen=True)
class LayerErrors(Watch):
    """Measure at each call how far the output is from dense attention on the same tensors.

    Attributes:
        found: Relative error (Frobenius norm over that of dense attention) by step and site.
    """

    name: ClassVar[str] = "layer-errors"

    found: dict[Place, float] = field(default_factory=dict[Place, float])

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        """Note the distance and give the output as it is."""
        dense = call.attend(call.query, call.key, call.value, call.mask).float()
        error = (out.float() - dense).norm() / dense.norm().clamp_min(1e-12)
        self.found[call.step.index, f"{call.site.denoiser}.{call.site.path}"] = float(error)
        return out

    def by_site(self, report: Report) -> dict[str, float]:
        """Mean over the steps at which something cheaper than dense attention served a site."""
        served: dict[str, list[float]] = {}
        for step, site in served_places(report):
            served.setdefault(site, []).append(self.found[step, site])
        return {site: sum(errors) / len(errors) for site, errors in served.items()}


def served_places(report: Report) -> list[Place]:
    """Steps and sites that a kernel other than dense attention served alone."""
    kernels: dict[Place, set[str]] = {}
    for entry in report.entries:
        if entry.pass_kind == "main":
            kernels.setdefault((entry.step, entry.site), set()).update(entry.kernel.split("+"))
    return [place for place, used in kernels.items() if not used & DENSE_KERNELS]


def attention_seconds(report: Report) -> dict[Place, float]:
    """Time inside each site at each step."""
    seconds: dict[Place, float] = {}
    for entry in report.entries:
        place = (entry.step, entry.site)
        seconds[place] = seconds.get(place, 0.0) + entry.seconds
    return seconds
