"""Suite ``edits``: edits with a known answer, each method beside what it claims to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from attnctl.bench.edit.comparison import Line
from attnctl.bench.edit.measure import EditBenchSettings, Edits, measure, settings_for
from attnctl.bench.edit.methods import REGENERATE, SDEDIT, Method
from attnctl.bench.edit.settings import BASELINES, CHOSEN
from attnctl.bench.effect.lines import (
    EffectLine,
    Outcome,
    Subject,
    of_answers,
    of_numbers,
    unmeasured,
)
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import PIPELINES, setting_text
from attnctl.bench.statistics import median

SUITE = "edits"
SUCCESS, AT_EQUAL, PRESERVED = "edit success", "edit success at equal preservation", "PSNR, dB"

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "shapes": ("prompt-to-prompt", "masa-ctrl", "item-guidance", "trajectory-replay"),
    "shapes-mmdit": (
        *("stable-flow", "head-router", "flux-space", "rf-control"),
        *("item-guidance", "trajectory-replay"),
    ),
}
"""What edits measure, by model."""

SOURCE = "attnctl bench edit --tune"
STRONGEST = BASELINES[-1].name
"""What times are compared with: unlike re-generation it needs no inversion."""

_OF_KIND = {"flow-edit": "item-guidance", "rf-inversion": "rf-control"}
ONE_SCALE, UNREPLAYED, UNROUTED = " with one scale", " without replay", " without the router"


def technique_of(method: Method) -> str:
    """The technique that a method stands for."""
    return str(method.settings.get("technique") or _OF_KIND.get(method.kind, ""))


def measure_edits(work: Work) -> Part | None:
    """Edit, score and compare with SDEdit, re-generation, and the method without the technique.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    names = [name for name in TECHNIQUES.get(work.model, ()) if work.wants(name)]
    if not names:
        return None
    chosen = CHOSEN.get(PIPELINES[work.model], [])
    methods = [method for method in chosen if _stands_for(method) & set(names)]
    pairs = [(method, _twins(method, names)) for method in methods]
    part = start_part(work, SUITE)
    if methods:
        twins = [twin for _, mine in pairs for twin in mine]
        done = _edited(work, [*BASELINES, *methods, *twins])
        part.run["edits"] = {key: done.record[key] for key in ("settings", "methods", "model")}
        _add(part, done, pairs, names)
    covered = {line.technique for line in part.lines}
    missing = [name for name in names if name not in covered]
    reason = "no settings were chosen for its edits yet: attnctl bench edit --tune"
    part.lines += [unmeasured(name, work.model, reason, SUITE) for name in missing]
    return part


def _stands_for(method: Method) -> set[str]:
    """Techniques that a method tells something about."""
    replays = {"trajectory-replay"} if method.kind == "technique" else set[str]()
    return {technique_of(method)} | replays


def _twins(method: Method, names: Sequence[str]) -> list[Method]:
    """The same method without one of the wanted techniques."""
    given = dict(method.settings)
    if method.kind == "technique" and "trajectory-replay" in names:
        return [replace(method, name=method.name + UNREPLAYED, kind="unreplayed")]
    if method.kind == "flow-edit":
        given["source_guidance"] = given["target_guidance"]
        return [replace(method, name=method.name + ONE_SCALE, settings=given)]
    if given.get("technique") == "head-router":
        own = {key: given[key] for key in ("eta", "stop")}
        return [Method(method.name + UNROUTED, "rf-inversion", own)]
    return []


def _edited(work: Work, methods: list[Method]) -> Edits:
    asked = work.settings
    settings: EditBenchSettings = settings_for(
        work.pipe, work.model, asked.edits, asked.split, asked.steps
    )
    return measure(*(work.pipe, settings, methods, work.folder), resume=work.resume, say=work.say)


def _add(
    part: Part,
    done: Edits,
    pairs: Sequence[tuple[Method, Sequence[Method]]],
    names: Sequence[str],
) -> None:
    lines = {line.method: line for line in done.lines}
    for method, twins in pairs:
        subject = Subject(SUITE, technique_of(method), part.model, _setting(method), SOURCE)
        if subject.technique in names:
            part.lines += _lines(subject, method, done, lines[method.name])
        for twin in twins:
            part.lines += _against_twin(subject, method, twin, done)
    middles = {name: median([float(e["seconds"]) for e in _of(done, name)]) for name in lines}
    for name, middle in middles.items():
        ratio = middle / middles[STRONGEST]
        cost = {"condition": name, "setting": "", "against": STRONGEST}
        part.costs.append({**cost, "seconds": middle, "time_ratio": ratio})
    part.sheets["first"] = done.save(f"edit-{part.model}")["sheet"]


def _setting(method: Method) -> str:
    shown = {k: v for k, v in method.settings.items() if k != "technique"}
    return f"{method.name}: {setting_text(shown)}"


def _lines(subject: Subject, method: Method, done: Edits, line: Line) -> list[EffectLine]:
    """Success at equal preservation, success, and preservation beside plain re-generation."""
    edits_alone = subject.technique != "item-guidance"
    answers, numbers = (f(done, REGENERATE, method.name) for f in (_answers, _numbers))
    made = [
        subject.line(SUCCESS, REGENERATE, answers, claimed=False),
        subject.line(PRESERVED, REGENERATE, numbers, claimed=edits_alone),
    ]
    if line.sdedit is None or line.gained_success is None:
        return made
    gain, interval = line.gained_success
    came = Outcome(
        line.count, line.sdedit, line.success[0], gain, interval, line.gained_p, is_good=True
    )
    note = f"preserved: {line.psnr[0]:.1f} dB"
    return [subject.line(AT_EQUAL, SDEDIT, came, claimed=edits_alone, note=note), *made]


def _against_twin(subject: Subject, method: Method, twin: Method, done: Edits) -> list[EffectLine]:
    """The method beside itself without the technique, which keeps, or edits, more."""
    keeps = twin.kind == "unreplayed"
    if keeps:
        subject = replace(subject, technique="trajectory-replay")
    answers, numbers = (f(done, twin.name, method.name) for f in (_answers, _numbers))
    return [
        subject.line(SUCCESS, twin.name, answers, claimed=not keeps),
        subject.line(PRESERVED, twin.name, numbers, claimed=keeps),
    ]


def _answers(done: Edits, before: str, after: str) -> Outcome:
    listed = [[bool(e["success"]) for e in _of(done, name)] for name in (before, after)]
    return of_answers(listed[0], listed[1], is_good=True)


def _numbers(done: Edits, before: str, after: str) -> Outcome:
    listed = [[float(e["psnr"]) for e in _of(done, name)] for name in (before, after)]
    return of_numbers(listed[0], listed[1], is_good=True)


def _of(done: Edits, method: str) -> list[Mapping[str, Any]]:
    mine = (e for e in done.entries if e["condition"] == method)
    return sorted(mine, key=lambda e: str(e["id"]))
