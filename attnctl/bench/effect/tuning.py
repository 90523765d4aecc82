"""Choose the settings of techniques that move pictures, on tuning prompts alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attnctl.bench.conditions import PLAIN, Condition, with_own_names
from attnctl.bench.effect.parts import EffectSettings, Work, folder_name
from attnctl.bench.effect.pictures import Drawn, draw_group
from attnctl.bench.effect.settings import (
    ALL_RIGHT,
    EXACT,
    RECIPE_GUIDANCE,
    Entry,
    ModelChoice,
    choice_text,
    read_choice,
    recipes_of,
    setting_text,
    singles_of,
)
from attnctl.bench.effect.table import Asked, Say
from attnctl.bench.markdown import markdown
from attnctl.cli.tables import print_json
from attnctl.errors import SettingError
from attnctl.files import write_text

CHOICE_FILE = "choice.json"
TUNING = "tuning"
HEAD = ("model", "technique", "setting", "all right %", "exact %", "distance to scenes", "chosen")


@dataclass(slots=True)
class Chosen:
    """What a tuning run found.

    Attributes:
        file: Where the choice lies.
        choice: What was chosen, by model.
        rows: Everything that was tried, as cells under `HEAD`.
    """

    file: Path
    choice: dict[str, ModelChoice]
    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])


def choose_settings(
    settings: EffectSettings,
    asked: Asked,
    folder: Path,
    load: Callable[[str], Any],
    *,
    resume: bool = False,
    say: Say = lambda _text: None,
) -> Chosen:
    """Try settings and recipes on tuning prompts; add the best to the file of choices.

    Settings of each technique come first, then recipes of techniques that are set so, unless
    techniques are named.

    Raises:
        SettingError: nothing that is asked for has settings to try.
    """
    file = folder / CHOICE_FILE
    done = Chosen(file, read_choice(file) if file.exists() else {})
    for model in asked.models:
        tried = [
            entry
            for entry in singles_of(model)
            if entry.tried and (not asked.techniques or entry.name in asked.techniques)
        ]
        if not tried:
            continue
        names = [entry.name for entry in tried] if asked.techniques else []
        at = folder / folder_name(TUNING, model, names)
        work = Work(load(model), model, settings, asked.techniques, at, resume, say)
        _tune_model(work, tried, done)
    if not done.rows:
        raise SettingError("--tune: nothing that is asked for has settings to try")
    write_text(file, choice_text(done.choice))
    return done


def _tune_model(work: Work, tried: Sequence[Entry], done: Chosen) -> None:
    """Choose for one model."""
    found = _tune_techniques(work, tried, done)
    before = done.choice.get(work.model, ModelChoice())
    chosen = before.model_copy(update={"techniques": {**before.techniques, **found}})
    done.choice[work.model] = chosen
    if not work.names:
        best = _tune_recipes(work, recipes_of(work.model, done.choice), done)
        done.choice[work.model] = chosen.model_copy(update={"recipes": best})


def _tune_techniques(work: Work, tried: Sequence[Entry], done: Chosen) -> dict[str, dict[str, Any]]:
    """The best parameters of every technique, by name."""
    found: dict[str, dict[str, Any]] = {}
    for guidance in sorted({entry.guidance for entry in tried}):
        group = [entry for entry in tried if entry.guidance == guidance]
        variants = [variant for entry in group for variant in _variants(entry)]
        drawn = _draw(work, variants, guidance)
        for entry in group:
            best = _best([v for v in variants if v.name == entry.name], drawn, done)
            found[entry.name] = dict(best.parts[0][1])
    return found


def _variants(entry: Entry) -> list[Entry]:
    """The entry with each of the settings that are tried."""
    return [replace(entry, parts=((entry.name, given),)) for given in entry.tried]


def _tune_recipes(
    work: Work, recipes: Sequence[Entry], done: Chosen
) -> tuple[tuple[str, ...], ...]:
    """The best recipe of each size."""
    drawn = _draw(replace(work, folder=work.folder / "recipes"), recipes, RECIPE_GUIDANCE)
    sizes = sorted({len(recipe.parts) for recipe in recipes})
    best = (_best([r for r in recipes if len(r.parts) == size], drawn, done) for size in sizes)
    return tuple(tuple(name for name, _ in recipe.parts) for recipe in best)


def _draw(work: Work, tried: Sequence[Entry], guidance: float) -> Drawn:
    made = [Condition(_named(entry), entry.parts) for entry in tried]
    conditions = with_own_names([Condition(PLAIN), *made])
    return draw_group(work, conditions, guidance, TUNING)


def _named(entry: Entry) -> str:
    if entry.is_recipe:
        return entry.title
    return f"{entry.name} [{setting_text(entry.parts[0][1])}]"


def _best(tried: Sequence[Entry], drawn: Drawn, done: Chosen) -> Entry:
    """Choose among entries that were drawn, and note how each came out.

    Of those whose pictures are not farther from scenes than plain ones, the one with the most exact
    pictures (all right, for techniques that claim presence), and of equal ones the nearest; if all
    are farther, the nearest one.
    """
    counts, away = drawn.counted(PLAIN), drawn.distances(PLAIN)

    def rank(entry: Entry) -> tuple[bool, float, float]:
        name, measure = _named(entry), EXACT if EXACT in entry.claims else ALL_RIGHT
        is_near = away[name].distance <= away[PLAIN].distance
        return is_near, counts[measure, name].share if is_near else 0.0, -away[name].distance

    best = max(tried, key=rank)
    for entry in tried:
        name = _named(entry)
        shares = (f"{100 * counts[m, name].share:.1f}" for m in (ALL_RIGHT, EXACT))
        last = (f"{away[name].distance:.2f}", "yes" if entry is best else "")
        done.rows.append((entry.model, entry.title, entry.setting, *shares, *last))
    return best


def print_choice(chosen: Chosen, *, as_json: bool) -> None:
    """Print what was tried and chosen."""
    if as_json:
        plain = {model: mine.model_dump(mode="json") for model, mine in chosen.choice.items()}
        print_json({"choice": plain, "files": {"choice": str(chosen.file)}})
        return
    print(f"{markdown(HEAD, chosen.rows)}\n\nchoice: {chosen.file}")  # noqa: T201
