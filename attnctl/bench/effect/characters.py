"""Suite ``characters``: given characters together in one scene, each after its own portrait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attnctl.bench.conditions import PLAIN
from attnctl.bench.effect.character_cases import (
    CharacterCase,
    Places,
    draw,
    find_places,
    joined,
    likeness,
    make_cases,
    parted,
    seen_again,
)
from attnctl.bench.effect.gallery import Gallery, Record, Shot
from attnctl.bench.effect.lines import EffectLine, Subject, unmeasured
from attnctl.bench.effect.parts import Part, Work, start_part
from attnctl.bench.effect.settings import ALL_RIGHT, EXACT, UNET, Parameters, setting_text
from attnctl.shapes.evaluate import SamplingSettings
from attnctl.shapes.verifier import verify
from attnctl.sheets import Cell, Row
from attnctl.techniques.ir_diffusion import IRDiffusion

SUITE = "characters"
LIKENESS = "likeness to the portraits, dB"
TECHNIQUE = "ir-diffusion"
TECHNIQUES = (TECHNIQUE,)

SETTINGS: Parameters = {"cross_weight": 0.0}
SOURCE = "docs/layout.md: with the default cross_weight, 0.9, this model leaves objects out"
_KEYS = {ALL_RIGHT: "all_right", EXACT: "exact", LIKENESS: "likeness"}
_CLAIMS = (ALL_RIGHT, LIKENESS)

SHOWN_CASES = 8


@dataclass(frozen=True, slots=True)
class _Studio:
    """How pictures are drawn."""

    pipe: Any
    steps: int
    guidance: float

    def plain(self, case: CharacterCase) -> Shot:
        """Without the technique; this finds the characters."""
        drawn = draw(self.pipe, case, self.steps, self.guidance, [])
        places = find_places(case, drawn)
        return _shot(case, drawn, places)

    def steered(self, case: CharacterCase, places: Places) -> Shot:
        """With the technique, from the same noise."""
        technique = IRDiffusion(
            portrait_masks=list(places.portraits), target_masks=list(places.scene), **SETTINGS
        )
        drawn = draw(self.pipe, case, self.steps, self.guidance, [technique])
        return _shot(case, drawn, seen_again(case, places, drawn[-1]))


def _shot(case: CharacterCase, drawn: Sequence[Any], places: Places | None) -> Shot:
    verdict = verify(drawn[-1], case.prompt.text)
    found = {
        "prompt": case.prompt.text,
        "all_right": verdict.all_right,
        "exact": verdict.exact,
        "verdict": verdict.label(),
        "likeness": None if places is None else likeness(places, drawn),
        "portraits": [] if places is None else places.portraits,
        "scene": [] if places is None else places.scene,
    }
    return Shot(joined(drawn), found)


def measure_characters(work: Work) -> Part | None:
    """Draw portraits and scenes with and without the technique.

    Returns:
        The part, or ``None`` if nothing here is wanted.
    """
    if work.model != UNET or not work.wants(*TECHNIQUES):
        return None
    part = start_part(work, SUITE)
    usual, asked = SamplingSettings(), work.settings
    steps = asked.steps_or(usual.steps)
    part.run["characters"] = {
        "steps": steps, "guidance": usual.guidance, "technique": {TECHNIQUE: dict(SETTINGS)},
    }  # fmt: skip
    gallery, cases = Gallery(work, part.run), make_cases(asked.split, asked.cases)
    studio = _Studio(work.pipe, steps, usual.guidance)
    for number, case in enumerate(cases, 1):
        _make_both(gallery, studio, case)
        work.say(f"scene {number} of {len(cases)}")
    if not gallery.of(TECHNIQUE):
        reason = f"portraits and scene show all characters in none of {len(cases)} plain runs"
        part.lines.append(unmeasured(TECHNIQUE, work.model, reason, SUITE))
        return part
    part.lines += _lines(gallery, len(cases), steps)
    part.costs.append(gallery.cost(TECHNIQUE, setting_text(SETTINGS), PLAIN))
    part.sheets["first"] = _sheet(work, gallery, cases[:SHOWN_CASES])
    return part


def _make_both(gallery: Gallery, studio: _Studio, case: CharacterCase) -> None:
    """Draw a case plain, and with the technique if the characters were found."""
    plain = gallery.get(PLAIN, case.name, partial(studio.plain, case))
    if plain["scene"]:
        portraits, scene = (tuple(map(tuple, plain[key])) for key in ("portraits", "scene"))
        places = Places(portraits, scene)
        gallery.get(TECHNIQUE, case.name, partial(studio.steered, case, places))


def _lines(gallery: Gallery, count: int, steps: int) -> list[EffectLine]:
    setting = f"{setting_text(SETTINGS)} (two portraits, {steps} steps)"
    usable = len(gallery.of(TECHNIQUE))
    note = f"the {usable} of {count} scenes that show two objects when drawn plainly: favours plain"
    subject = Subject(SUITE, TECHNIQUE, UNET, setting, SOURCE, note)
    return [
        subject.line(
            measure,
            PLAIN,
            gallery.compared(key, PLAIN, TECHNIQUE),
            claimed=measure in _CLAIMS,
        )
        for measure, key in _KEYS.items()
    ]


def _sheet(work: Work, gallery: Gallery, cases: Sequence[CharacterCase]) -> Path:
    """Portraits, plain scene and scene with the technique, one case a row."""
    rows: list[Row] = []
    for case in cases:
        records = gallery.of_case(case.name)
        kinds = case.prompt.objects
        *portraits, _ = parted(gallery.picture(records[0]), len(kinds) + 1)
        cells = [Cell(p, f"portrait: {kind}") for p, kind in zip(portraits, kinds, strict=True)]
        cells += [_cell(gallery, record, len(kinds) + 1) for record in records]
        rows.append(Row(case.prompt.text, cells))
    return gallery.save_sheet(rows, f"{work.model}: first prompts of the list, not picked")


def _cell(gallery: Gallery, record: Record, count: int) -> Cell:
    number = record["likeness"]
    like = "not found" if number is None else f"{number:.1f} dB"
    caption = f"{record['condition']}: {record['verdict']}, {like}"
    scene = parted(gallery.picture(record), count)[-1]
    return Cell(scene, caption, bool(record["all_right"]))
