"""The table of effects at a glance: one row a technique, whose verdicts are those of its claims."""

from __future__ import annotations

from attnctl.bench.conditions import PLAIN
from attnctl.bench.effect.glance import GLANCE_HEAD, glance_rows
from attnctl.bench.effect.lines import EffectLine, Subject, of_answers
from attnctl.bench.effect.settings import MMDIT, UNET

MANY = 40


def line(technique: str, model: str, measure: str, right: int, against: str = PLAIN) -> EffectLine:
    """A claim that had 20 of 40 cases right and now has ``right``."""
    subject = Subject("pictures", technique, model, "", "")
    before, after = ([place < n for place in range(MANY)] for n in (20, right))
    return subject.line(measure, against, of_answers(before, after, is_good=True), claimed=True)


def points(one: EffectLine) -> str:
    return f"{100 * (one.difference or 0):+.0f}"


def test_a_cell_sorts_the_claims_of_one_technique_and_model_by_their_verdict() -> None:
    lines = [
        line("pag", UNET, "exact", 21),
        line("pag", UNET, "all right", 40),
        line("pag", MMDIT, "exact", 0),
        line("pag", UNET, "exact", 20, against="sdedit"),
    ]
    [row] = glance_rows(lines, points)
    assert len(row) == len(GLANCE_HEAD)
    assert row[:3] == (
        "pag",
        "**helps**: all right +50; nothing seen: exact +2 and +0",
        "**harms**: exact -50",
    )
    assert row[3] == ""


def test_recipes_come_last_and_stand_beside_plain_pictures_alone() -> None:
    lines = [
        line("apg+seg", UNET, "exact", 40),
        line("apg+seg", UNET, "exact", 0, against="apg"),
        line("seg", UNET, "exact", 20),
    ]
    assert [row[:2] for row in glance_rows(lines, points)] == [
        ("seg", "nothing seen: exact +0"),
        ("apg+seg", "**helps**: exact +50"),
    ]
