"""What ``bench effect`` measures of every technique, on which model, and with which settings.

A technique that moves pictures has its settings here. Edits take theirs from `edit.settings.CHOSEN`
when they run; clips and fast attention have what is compared in `coverage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from attnctl.bench.conditions import PLAIN, Condition, with_own_names
from attnctl.bench.guidance.conditions import SWEEPS
from attnctl.errors import SettingError, nearest
from attnctl.registry import build

UNET, MMDIT, MOTION = "shapes", "shapes-mmdit", "shapes-motion"
MODELS = (UNET, MMDIT, MOTION)
PIPELINES = {UNET: "StableDiffusionPipeline", MMDIT: "StableDiffusion3Pipeline"}

ALL_RIGHT, EXACT = "all right", "exact"
ABSENT, NEGLECT, MISSING = "an object absent", "too few objects", "missing objects"
DISTANCE, CHANGED = "distance to scenes", "pictures changed"

Parameters = Mapping[str, Any]
Part = tuple[str, Parameters]

_CLEARER = (EXACT, DISTANCE)
_PRESENCE = (ALL_RIGHT, ABSENT, NEGLECT)
_WHOLE = (ALL_RIGHT, EXACT)
CHOSEN_SOURCE = "attnctl bench effect --tune"
_UNTUNED = "docs/guidance.md; not tuned for this model yet"


@dataclass(frozen=True, slots=True)
class Entry:
    """One technique, or one recipe of several, on one model.

    Attributes:
        model: Name of a bundled model.
        parts: Name and parameters of each technique.
        guidance: Weight of classifier-free guidance; the plain pictures beside it have the same.
        claims: Measures that it claims to move.
        source: Where its settings were chosen.
        tried: Other parameters of the one technique, which ``--tune`` chooses among.
        note: What a reader of the table must know.
    """

    model: str
    parts: tuple[Part, ...]
    guidance: float
    claims: tuple[str, ...]
    source: str = _UNTUNED
    tried: tuple[Parameters, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """Names of its techniques, joined by ``+``."""
        return "+".join(name for name, _ in self.parts)

    @property
    def title(self) -> str:
        """The same for tables and sheets, where long names need room to break."""
        return " + ".join(name for name, _ in self.parts)

    @property
    def is_recipe(self) -> bool:
        """Whether it joins several techniques."""
        return len(self.parts) > 1

    @property
    def setting(self) -> str:
        """Its settings in words."""
        shown = "; ".join(setting_text(given) for _, given in self.parts)
        return f"{shown} (guidance {self.guidance:g})"


def setting_text(parameters: Parameters) -> str:
    """Parameters as ``key=value, key=value``."""
    return ", ".join(f"{key}={_short(value)}" for key, value in parameters.items()) or "defaults"


def _short(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) > 3:
        return f"{len(value)} of them"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one(
    model: str,
    name: str,
    guidance: float,
    claims: Sequence[str],
    parameters: Parameters,
    **more: Any,
) -> Entry:
    return Entry(model, ((name, parameters),), guidance, tuple(claims), **more)


def _heads(model: str) -> Parameters:
    """Settings of SoftPAG with the heads that a search found, as ``bench guidance`` has them."""
    chosen = [s for s in SWEEPS[PIPELINES[model]].chosen if s.family == "SoftPAG heads"]
    plain = chosen[0].to_plain()
    return {key: value for key, value in plain.items() if key != "name"}


_EXCITE: Parameters = {"scale_factor": 4, "steps": "0-50%", "thresholds": {}}
_APG = tuple({"eta": e, "norm_threshold": n} for e in (0.0, 0.5) for n in (0.0, 5.0, 15.0))
_NAG = tuple({"scale": s, "alpha": a} for s in (4.0, 8.0) for a in (0.25, 0.5, 1.0))
_MODULATION: tuple[Parameters, ...] = (
    {"mask": False, "phases": False},
    {"temperature": 1.0, "phases": False},
    {"temperature": 1.0, "mask": False},
    {},
)
_BOUNDED: tuple[Parameters, ...] = (
    {"loss_where": "mid|up:level=1"},
    {"loss_where": "mid|up:level=1", "init_step_size": 16.0, "final_step_size": 4.0},
    {"loss_where": "mid|up:level=1", "iterations": 0},
)
_EARLY: Parameters = {"steps": "0-20%"}
_IN_BOXES = "one box for each object, side by side"
_WITHOUT = "both without classifier-free guidance"
_STRONG = "both with strong guidance"
_EXPERIMENTAL = "experimental on joint attention"
_KEEPS = "claims to change no bit"

_ON_UNET = (
    _one(UNET, "attend-and-excite", 5.0, _PRESENCE, _EXCITE, source="benchmarks/steering.json"),
    _one(UNET, "attention-modulation", 5.0, _WHOLE, {}, source="defaults", tried=_MODULATION),
    _one(UNET, "bounded-attention", 5.0, _WHOLE, _BOUNDED[0], tried=_BOUNDED, note=_IN_BOXES,
         source="docs/layout.md"),
    _one(UNET, "region-words", 5.0, _WHOLE, _EARLY, tried=(_EARLY, {"steps": "0-40%"}, {}),
         note=f"{_IN_BOXES}; in all steps, its default, it harms",
         source="24 tuning prompts"),
    _one(UNET, "heat-maps", 5.0, (CHANGED,), {}, source="defaults", note=_KEEPS),
    _one(UNET, "cfg-zero-star", 5.0, _CLEARER, {"zero_steps": 0}, tried=({"zero_steps": 0},)),
    _one(UNET, "soft-pag", 3.0, _CLEARER, _heads(UNET), source="benchmarks/guidance-shapes.json"),
    _one(UNET, "pag", 3.0, _CLEARER, {"scale": 1.0, "where": "down:self"},
         source="benchmarks/guidance-shapes.json"),
    _one(UNET, "seg", 3.0, _CLEARER, {"scale": 1.0, "where": "down:self", "sigma": 2.0},
         tried=tuple({"scale": s, "where": w, "sigma": width} for s in (1.0, 2.5)
                     for w, width in (("down:self", 2.0), ("down:self", -1.0), ("up:self", -1.0)))),
    _one(UNET, "slg", 3.0, _CLEARER, {"scale": 1.0, "blocks": [1, 2], "steps": "0-60%"},
         tried=tuple({"scale": s, "blocks": b, "steps": "0-60%"} for s in (1.0, 2.5)
                     for b in ([0], [1, 2], [7], [9]))),
    _one(UNET, "tpg", 3.0, _CLEARER, {"scale": 1.0, "blocks": [1, 2]},
         tried=tuple({"scale": s, "blocks": b} for s in (1.0, 2.5) for b in ([0], [1, 2], [7]))),
    _one(UNET, "apg", 9.0, _CLEARER, {"eta": 0.0, "norm_threshold": 15.0}, note=_STRONG,
         tried=_APG),
    _one(UNET, "nag", 1.0, _CLEARER, {"scale": 4.0}, note=_WITHOUT,
         tried=_NAG),
)  # fmt: skip

_ON_MMDIT = (
    _one(MMDIT, "attend-and-excite", 5.0, _PRESENCE, _EXCITE, note=_EXPERIMENTAL,
         source="benchmarks/steering.json, chosen for shapes",
         tried=tuple(_EXCITE | {"scale_factor": f} for f in (4, 20, 60))),
    _one(MMDIT, "heat-maps", 5.0, (CHANGED,), {}, source="defaults", note=_KEEPS),
    _one(MMDIT, "cfg-zero-star", 5.0, _CLEARER, {"zero_steps": 1},
         tried=({"zero_steps": 0}, {"zero_steps": 1})),
    _one(MMDIT, "soft-pag", 5.0, _CLEARER, _heads(MMDIT),
         source="benchmarks/guidance-shapes-mmdit.json"),
    _one(MMDIT, "pag", 5.0, _CLEARER, {"scale": 1.5, "where": "layers=0"},
         source="benchmarks/guidance-shapes-mmdit.json"),
    _one(MMDIT, "seg", 5.0, _CLEARER, {"scale": 1.5, "where": "layers=0"},
         tried=tuple({"scale": s, "where": w, "sigma": -1.0} for s in (1.5, 3.0)
                     for w in ("layers=0", "layers=2-3"))),
    _one(MMDIT, "slg", 5.0, _CLEARER, {"scale": 1.5, "blocks": [2, 3], "steps": "0-60%"},
         tried=tuple({"scale": s, "blocks": b, "steps": "0-60%"} for s in (1.5, 3.0)
                     for b in ([0], [2, 3], [5]))),
    _one(MMDIT, "tpg", 5.0, _CLEARER, {"scale": 1.5, "blocks": [0]},
         tried=tuple({"scale": s, "blocks": b} for s in (1.5, 3.0) for b in ([0], [2, 3]))),
    _one(MMDIT, "apg", 9.0, _CLEARER, {"eta": 0.0, "norm_threshold": 15.0}, note=_STRONG,
         tried=_APG),
    _one(MMDIT, "nag", 1.0, _CLEARER, {"scale": 4.0}, note=_WITHOUT,
         tried=_NAG),
)  # fmt: skip

TECHNIQUES = (*_ON_UNET, *_ON_MMDIT)
"""Single techniques that move pictures."""

_EXCITED, _CLEARED = "attend-and-excite", "soft-pag"
CANDIDATES: dict[str, tuple[tuple[str, ...], ...]] = {
    UNET: (
        (_EXCITED, _CLEARED), (_EXCITED, "pag"), (_EXCITED, "seg"), (_CLEARED, "cfg-zero-star"),
        (_EXCITED, _CLEARED, "apg"), (_EXCITED, _CLEARED, "seg"),
        (_EXCITED, _CLEARED, "cfg-zero-star"),
    ),
    MMDIT: (
        (_CLEARED, "cfg-zero-star"), (_CLEARED, "seg"), (_CLEARED, "apg"), (_EXCITED, _CLEARED),
        (_EXCITED, _CLEARED, "cfg-zero-star"), (_CLEARED, "seg", "cfg-zero-star"),
        (_EXCITED, _CLEARED, "apg"),
    ),
}  # fmt: skip
"""Recipes of two and three techniques, by model; each technique is set as it is alone."""

RECIPE_GUIDANCE = 5.0


class ModelChoice(BaseModel):
    """What was chosen for one model.

    Attributes:
        techniques: Parameters by name of the technique.
        recipes: Names of the techniques of each recipe; of each size, the best one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    techniques: dict[str, dict[str, Any]] = {}
    recipes: tuple[tuple[str, ...], ...] = ()


Choice = Mapping[str, ModelChoice]
"""What was chosen, by model."""


def singles_of(model: str, choice: Choice | None = None) -> list[Entry]:
    """Entries of single techniques of a model.

    Args:
        model: Name of a bundled model.
        choice: What takes the place of built-in settings.
    """
    chosen = (choice or {}).get(model, ModelChoice()).techniques
    return [
        replace(entry, parts=((entry.name, chosen[entry.name]),), source=CHOSEN_SOURCE)
        if entry.name in chosen
        else entry
        for entry in TECHNIQUES
        if entry.model == model
    ]


def recipes_of(model: str, choice: Choice | None = None) -> list[Entry]:
    """Entries of every recipe that is a candidate on a model, in the order of `CANDIDATES`."""
    known = {entry.name: entry for entry in singles_of(model, choice)}
    parts = [tuple(known[name].parts[0] for name in names) for names in CANDIDATES.get(model, ())]
    source = "as its techniques alone"
    return [Entry(model, mine, RECIPE_GUIDANCE, _WHOLE, source) for mine in parts]


def entries_of(model: str, choice: Choice | None = None, names: Sequence[str] = ()) -> list[Entry]:
    """Entries of a model: those that are named, else all techniques and a recipe of each size."""
    singles, recipes = singles_of(model, choice), recipes_of(model, choice)
    if names:
        return [entry for entry in (*singles, *recipes) if entry.name in names]
    best = (choice or {}).get(model, ModelChoice()).recipes
    if not best:
        sizes = {len(entry.parts): entry for entry in reversed(recipes)}
        best = [tuple(name for name, _ in sizes[size].parts) for size in sorted(sizes)]
    wanted = ["+".join(one) for one in best]
    return [*singles, *(entry for entry in recipes if entry.name in wanted)]


def conditions_of(entries: Sequence[Entry]) -> list[Condition]:
    """Conditions of entries with the same guidance, and of what recipes among them consist of."""
    made: dict[str, Condition] = {}
    for entry in entries:
        made[entry.name] = Condition(entry.title, entry.parts)
        for part in entry.parts:
            made.setdefault(part[0], Condition(part[0], (part,)))
    return with_own_names([Condition(PLAIN), *made.values()])


_CHOICE = TypeAdapter(dict[str, ModelChoice])


def read_choice(path: Path) -> dict[str, ModelChoice]:
    """Read what ``bench effect --tune`` chose.

    Raises:
        SettingError: the file cannot be read or used.
    """
    try:
        chosen = _CHOICE.validate_json(path.read_bytes())
        for model, mine in chosen.items():
            known = [entry.name for entry in TECHNIQUES if entry.model == model]
            candidates = ["+".join(names) for names in CANDIDATES.get(model, ())]
            for name, given in mine.techniques.items():
                check_name(f"on {model!r}", name, known)
                build(name, given)
            for names in mine.recipes:
                check_name(f"on {model!r}", "+".join(names), candidates)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"--choice {str(path)!r}: {error}; give the choice.json of a --tune run"
        ) from None
    return chosen


def choice_text(choice: Choice) -> str:
    """What was chosen as :func:`read_choice` reads it."""
    return _CHOICE.dump_json(dict(choice), indent=1).decode() + "\n"


def check_name(option: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        SettingError: with the nearest names.
    """
    if name not in known:
        raise SettingError(f"{option} {name!r}; {nearest(name, known)}")
