"""How much faster a pipeline is with fast attention, and how much memory it takes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from attnctl.bench.journal import Journal
from attnctl.bench.machine import machine_record
from attnctl.bench.memory import peak_bytes
from attnctl.bench.networks import (
    finest_unet,
    medium_unet,
    parameters_of,
    pipeline_around,
    pipeline_around_sd3,
    random_inputs,
    stable_diffusion_3,
    stable_diffusion_unet,
    tiny_unet,
)
from attnctl.bench.sparse.agreement import measure_agreement
from attnctl.bench.sparse.conditions import Way, build_techniques, is_dense
from attnctl.bench.sparse.layers import Place, Watch, attention_seconds, served_places
from attnctl.bench.statistics import median
from attnctl.bench.timing import ratio
from attnctl.errors import AttnctlError, SettingError, nearest

NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "sd15": (lambda: pipeline_around(stable_diffusion_unet()), 64),
    "sd3": (lambda: pipeline_around_sd3(stable_diffusion_3()), 128),
    "sd15-finest": (lambda: pipeline_around(finest_unet()), 64),
    "medium": (lambda: pipeline_around(medium_unet()), 64),
    "tiny": (lambda: pipeline_around(tiny_unet()), 32),
}
"""Networks with random weights, and the side of their latents in cells."""

GUIDANCE_OFF = 1.0

Say = Callable[[str], None]
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SpeedSettings:
    """What is timed.

    Attributes:
        network: One of `NETWORKS`; ``None`` takes the pipeline that draws the pictures.
        repeats: Rounds; in each, dense and each way have a turn. 0: nothing is timed.
        steps: Denoising steps of a timed run, without guidance.
        latents: Side of the latents in cells; ``None``: the network's, or that of the pictures.
    """

    network: str | None = None
    repeats: int = 5
    steps: int = 5
    latents: int | None = None

    def __post_init__(self) -> None:
        if self.network is not None and self.network not in NETWORKS:
            raise SettingError(f"--network {self.network!r}; {nearest(self.network, NETWORKS)}")
        if self.latents is not None and (self.latents < 8 or self.latents % 8):
            raise SettingError(f"--latents {self.latents} must be a multiple of 8")

    def build(self, pipe: Any, side: int) -> tuple[Any, int]:
        """The pipeline that is timed, and the side of its latents.

        Args:
            pipe: The one that draws the pictures.
            side: Side of their latents in cells.
        """
        if self.network is None:
            return pipe, self.latents or side
        make, own = NETWORKS[self.network]
        torch.manual_seed(0)
        return make(), self.latents or own


def measure_speed(
    pipe: Any,
    ways: Sequence[Way],
    settings: SpeedSettings,
    side: int,
    folder: Path,
    *,
    resume: bool,
    say: Say,
) -> dict[str, Any]:
    """Time dense attention and every way in turn, round by round, and weigh one run of each.

    Every round is on the disk when it is done. Ways that cannot run on the network are listed
    under ``refused`` with the reason.

    Raises:
        SettingError: the folder holds another measurement.
    """
    say(f"building {settings.network or 'the network of the pictures'}")
    timed, cells = settings.build(pipe, side)
    denoiser = getattr(timed, "unet", None) or timed.transformer
    network = {
        "name": settings.network or "as drawn",
        "parameters": parameters_of(denoiser),
        "dtype": str(denoiser.dtype).removeprefix("torch."),
        "latents": f"{cells} x {cells}",
    }
    run = {"settings": asdict(settings), "network": network, "machine": machine_record()}
    journal = Journal(folder, run | {"ways": [way.to_plain() for way in ways]})
    journal.open(resume=resume)
    inputs = random_inputs(timed, side=cells, steps=settings.steps, guidance=GUIDANCE_OFF)
    bench = _Bench(timed, inputs, journal, settings, say)
    refused = bench.fill(ways)
    lines = [bench.line(way) for way in ways if way.name not in refused]
    agreement = measure_agreement(timed, ways) if hasattr(timed, "unet") else []
    return run | {"refused": refused, "lines": lines, "agreement": agreement}


@dataclass(slots=True)
class _Bench:
    pipe: Any
    inputs: Mapping[str, Any]
    journal: Journal
    settings: SpeedSettings
    say: Say

    def fill(self, ways: Sequence[Way]) -> dict[str, str]:
        """Make every entry that the journal lacks; name the ways that cannot run, with reasons."""
        for way in ways:
            if self.journal.get(way.name, "memory") is None:
                self._add(way, "memory", self._weigh(way))
        weighed = {way.name: self.journal.get(way.name, "memory") or {} for way in ways}
        refused = {name: str(e["refused"]) for name, e in weighed.items() if "refused" in e}
        others = [way for way in ways if not is_dense(way) and way.name not in refused]
        for number in range(self.settings.repeats):
            for way in others:
                if self.journal.get(way.name, f"round-{number}") is None:
                    self._add(way, f"round-{number}", self._round(ways[0], way, number))
            self.say(f"round {number + 1} of {self.settings.repeats}")
        return refused

    def line(self, way: Way) -> dict[str, Any]:
        """What the rounds of a way say."""
        weighed = self.journal.get(way.name, "memory") or {}
        made = {"condition": way.name, "peak_bytes": weighed["peak_bytes"]}
        if is_dense(way):
            return made
        count = self.settings.repeats
        listed = [self.journal.get(way.name, f"round-{n}") or {} for n in range(count)]
        return made | {**summarise(listed), "rounds": listed}

    def _weigh(self, way: Way) -> dict[str, Any]:
        """Peak memory of one run, which also warms up; or why there is none."""
        reason = None if way.peer is None else way.peer.why_not(self.pipe)
        if reason is None:
            try:
                _, size = peak_bytes(lambda: self._run(way))
            except AttnctlError as error:
                reason = str(error)
            else:
                self.say(f"{way.name}: {size / 2**20:.0f} MiB at the peak")
                return {"peak_bytes": size}
        self.say(f"{way.name}: {reason}")
        return {"refused": reason}

    def _add(self, way: Way, name: str, values: dict[str, Any]) -> None:
        self.journal.add([{"condition": way.name, "id": name, **values}])

    def _round(self, dense: Way, way: Way, number: int) -> dict[str, Any]:
        order = [dense, way] if number % 2 == 0 else [way, dense]
        timed = {one.name: self._run(one) for one in order}
        mine, plain = timed[way.name], timed[dense.name]
        served = mine.pop("served")
        plain.pop("served")
        places = served if served is not None else []
        for side in (mine, plain):
            seconds = side.pop("seconds")
            side["attention"] = sum(seconds.get(place, 0.0) for place in places)
        steps = sorted({step for step, _ in places}) or list(range(self.settings.steps))
        return {
            "dense": plain,
            "mine": mine,
            "acting": steps,
            "load": round(os.getloadavg()[0], 2),
        }

    def _run(self, way: Way) -> dict[str, Any]:
        """One run: its time, that of each step, and of each site if it can be observed."""
        marks: list[tuple[float, float]] = []

        def mark(*given: Any) -> Any:
            marks.append((time.perf_counter(), time.process_time()))
            return given[-1] if given else None

        with way.attached(self.pipe, build_techniques(way), Watch()) as session:
            mark()
            self.pipe(**self.inputs, callback_on_step_end=mark)
            mark()
            report = None if session is None else session.report()
        known: dict[Place, float] = {} if report is None else attention_seconds(report)
        return {
            "wall": marks[-1][0] - marks[0][0],
            "cpu": marks[-1][1] - marks[0][1],
            "steps": [b[0] - a[0] for a, b in itertools.pairwise(marks[:-1])],
            "steps_cpu": [b[1] - a[1] for a, b in itertools.pairwise(marks[:-1])],
            "seconds": known,
            "served": None if report is None else served_places(report),
        }


def summarise(rounds: Sequence[Entry]) -> dict[str, Any]:
    """Median ratios of dense over mine with quartiles, and the load of the machine.

    ``whole`` is of whole runs, ``acting`` of the steps at which nothing is dense, ``attention`` of
    the time inside the sites that are served then; ``None`` where it cannot be observed.
    """
    if not rounds:
        return {}
    dense, mine = ([entry[side] for entry in rounds] for side in ("dense", "mine"))
    acting = rounds[0]["acting"]

    def at_steps(side: Entry, clock: str = "steps") -> float:
        return sum(side[clock][step] for step in acting)

    def cpu_at_steps(side: Entry) -> float:
        return at_steps(side, "steps_cpu")

    found: dict[str, Any] = {
        "whole": ratio([one["wall"] for one in dense], [one["wall"] for one in mine]),
        "whole_cpu": ratio([one["cpu"] for one in dense], [one["cpu"] for one in mine]),
        "acting": ratio(list(map(at_steps, dense)), list(map(at_steps, mine))),
        "acting_cpu": ratio(list(map(cpu_at_steps, dense)), list(map(cpu_at_steps, mine))),
        "attention": None,
        "seconds": median([one["wall"] for one in mine]),
        "dense_seconds": median([one["wall"] for one in dense]),
        "load": [min(e["load"] for e in rounds), max(e["load"] for e in rounds)],
    }
    if all(one["attention"] > 0 for one in (*dense, *mine)):
        pairs = ([one["attention"] for one in dense], [one["attention"] for one in mine])
        found["attention"] = ratio(*pairs)
        share = [one["attention"] / at_steps(one) for one in dense]
        found["attention_share"] = median(share)
    return found
