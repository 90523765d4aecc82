"""Suite ``scenes``: an object goes into a given scene, where the right answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from attnctl.bench.edit.methods import Method
from attnctl.bench.effect.gallery import Gallery, Record
from attnctl.bench.effect.lines import EffectLine, Subject
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.scene_cases import SceneCase, make_cases
from attnctl.bench.effect.scene_ways import Stage, make
from attnctl.bench.effect.settings import UNET, setting_text
from attnctl.pipelines.compose_settings import (  # pyright: ignore[reportMissingImports]
    ComposeSettings,
)
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.sheets import Cell, Row

SUITE = "scenes"
BOTH, SHOWN, STAYS = "both objects right", "new object shown", "scene's object in its place"
OBJECT, OUTSIDE, SCENE = (
    "likeness of the object to pasting, dB",
    "likeness outside of the box, dB",
    "likeness to the scene, dB",
)
_KEYS = {
    BOTH: "all_right", SHOWN: "reached", STAYS: "kept",
    OBJECT: "psnr_object", OUTSIDE: "psnr_outside", SCENE: "psnr",
}  # fmt: skip
ANSWERS = (BOTH, SHOWN, STAYS)
"""Measures that are shares."""

COMPOSED = Method("PrimeComposer", "compose")
UNINFUSED = Method("without infusion", "compose", {"infuse": 0.0})
BARE = Method(
    "without infusion, words act everywhere", "compose", {"infuse": 0.0, "confine": False}
)
PLAIN = Method("plain", "plain")
KEEPING = Method("SDEdit [0.7]", "sdedit", {"strength": 0.7})
SHOWING = Method("SDEdit [0.9]", "sdedit", {"strength": 0.9})
GRAD_SAM = Method("GradSAM", "grad-sam", {"sigma": 0.5, "dilations": 0})
"""Of the strengths from 0.5 to 0.9 the first is the strongest that keeps the scene's object in 10
tuning scenes, the other one shows the new object most often; GradSAM's defaults are for latents
of more cells, and of 5 settings this one kept most there."""

_TUNED = "10 tuning scenes, of 5 settings; strengths of SDEdit likewise"

SHOWN_CASES = 8


@dataclass(frozen=True, slots=True)
class Comparison:
    """One technique beside one other way.

    Attributes:
        technique: Its name.
        way: With it.
        against: Without it.
        measures: What is measured.
        claims: What of that it claims to move.
        source: Where its settings come from.
        note: What a reader must know.
    """

    technique: str
    way: Method
    against: Method
    measures: tuple[str, ...]
    claims: tuple[str, ...]
    source: str
    note: str


_COMPOSITION = (BOTH, OBJECT, OUTSIDE)
_GIVEN = (SHOWN, STAYS, BOTH, SCENE)
_PASTED = "pasting itself is a right answer in this world"
_ELSEWHERE = "likeness: PSNR outside of the new object where it is seen"
COMPARISONS = (
    Comparison(
        *("prime-composer", COMPOSED, UNINFUSED, _COMPOSITION, (BOTH, OBJECT)),
        *("docs/composition.md", _PASTED),
    ),
    Comparison(
        *("prime-composer", COMPOSED, BARE, _COMPOSITION, ()),
        *("docs/composition.md", f"with region-words, beside neither; {_PASTED}"),
    ),
    Comparison(
        *("grad-sam", GRAD_SAM, PLAIN, _GIVEN, (SCENE,)),
        *(_TUNED, f"plain pictures know nothing of the scene; {_ELSEWHERE}"),
    ),
    Comparison(*("grad-sam", GRAD_SAM, KEEPING, _GIVEN, (SHOWN,)), *(_TUNED, _ELSEWHERE)),
    Comparison(*("grad-sam", GRAD_SAM, SHOWING, _GIVEN, (SCENE,)), *(_TUNED, _ELSEWHERE)),
)
TECHNIQUES = tuple(dict.fromkeys(one.technique for one in COMPARISONS))


def measure_scenes(work: Work) -> Part | None:
    """Put objects into scenes with and without each technique.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    wanted = [one for one in COMPARISONS if work.wants(one.technique)]
    if not wanted or work.model != UNET:
        return None
    part = start_part(work, SUITE)
    ways = list({way.name: way for one in wanted for way in (one.against, one.way)}.values())
    usual, asked = SamplingSettings(), work.settings
    steps = {
        "compose": asked.steps_or(ComposeSettings().steps),
        "else": asked.steps_or(usual.steps),
    }
    part.run["scenes"] = {
        "steps": steps, "guidance": usual.guidance, "ways": [way.to_plain() for way in ways],
    }  # fmt: skip
    gallery, cases = Gallery(work, part.run), make_cases(asked.split, asked.cases)
    for number, case in enumerate(cases, 1):
        _make_all(work, gallery, case, ways, steps, usual.guidance)
        work.say(f"scene {number} of {len(cases)}")
    for one in wanted:
        part.lines += _lines(one, gallery, steps)
        part.costs.append(gallery.cost(one.way.name, _setting(one, steps), one.against.name))
    part.sheets["first"] = _sheet(work, gallery, cases[:SHOWN_CASES])
    return part


def _make_all(
    work: Work,
    gallery: Gallery,
    case: SceneCase,
    ways: list[Method],
    steps: dict[str, int],
    guidance: float,
) -> None:
    """Make the pictures of one scene; what its compositions share is made once."""
    stages = {kind: Stage(work.pipe, case, number, guidance) for kind, number in steps.items()}
    for way in ways:
        stage = stages.get(way.kind, stages["else"])
        made, ready = partial(make, stage, way), partial(stage.prepare, way)
        gallery.get(way.name, case.name, made, ready)


def _setting(one: Comparison, steps: dict[str, int]) -> str:
    number = steps.get(one.way.kind, steps["else"])
    return f"{one.way.name}: {setting_text(one.way.settings)} ({number} steps)"


def _lines(one: Comparison, gallery: Gallery, steps: dict[str, int]) -> list[EffectLine]:
    subject = Subject(SUITE, one.technique, UNET, _setting(one, steps), one.source, one.note)
    return [
        subject.line(
            measure,
            one.against.name,
            gallery.compared(_KEYS[measure], one.against.name, one.way.name),
            claimed=measure in one.claims,
        )
        for measure in one.measures
    ]


def _sheet(work: Work, gallery: Gallery, cases: list[SceneCase]) -> Path:
    """The first scenes, one a row: what is given, and what every way makes of it."""
    rows: list[Row] = []
    for case in cases:
        given = [
            Cell(case.scene, "scene"),
            Cell(case.subject, "object"),
            Cell(case.edit.answer, "a right answer"),
        ]
        made = [_cell(gallery, record) for record in gallery.of_case(case.name)]
        rows.append(Row(case.prompt, [*given, *made]))
    return gallery.save_sheet(rows, f"{work.model}: first scenes of the list, not picked")


def _cell(gallery: Gallery, record: Record) -> Cell:
    caption = f"{record['condition']}: {record['seen'] or 'nothing'}, {record['psnr']:.1f} dB"
    return Cell(gallery.picture(record), caption, bool(record["all_right"]))
