"""The table of effects at a glance: one row a technique, one column a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from attnctl.bench.conditions import PLAIN
from attnctl.bench.effect.lines import HARMS, HELPS, NOTHING_SEEN, EffectLine
from attnctl.bench.effect.settings import MODELS

GLANCE_HEAD = ("technique", *MODELS)
SAID = {HELPS: "**helps**", HARMS: "**harms**", NOTHING_SEEN: "nothing seen"}

Difference = Callable[[EffectLine], str]


def glance_rows(lines: Sequence[EffectLine], difference: Difference) -> list[tuple[str, ...]]:
    """What each technique and recipe claims, and what came of it.

    Args:
        lines: The table.
        difference: How the difference of a line is written.

    Returns:
        Cells under `GLANCE_HEAD`; a technique without a claim that was measured has no row.
    """
    claimed = [line for line in lines if line.claimed and is_first(line)]
    names = sorted({line.technique for line in claimed}, key=lambda name: ("+" in name, name))
    return [
        (name, *(_cell([x for x in claimed if (x.technique, x.model) == (name, model)], difference)
                 for model in MODELS))
        for name in names
    ]  # fmt: skip


def is_first(line: EffectLine) -> bool:
    """Whether it is the comparison that counts: of recipes that with plain pictures."""
    return not line.is_recipe or line.baseline_name == PLAIN


def _cell(lines: Sequence[EffectLine], difference: Difference) -> str:
    """Measures by their verdict: ``**helps**: exact +18.0; nothing seen: all right +4.4``."""
    told: list[str] = []
    for verdict, said in SAID.items():
        found: dict[str, list[str]] = {}
        for line in lines:
            if line.verdict == verdict:
                found.setdefault(line.measure, []).append(difference(line))
        if found:
            listed = (f"{measure} {' and '.join(numbers)}" for measure, numbers in found.items())
            told.append(f"{said}: {', '.join(listed)}")
    return "; ".join(told)
