"""The table of effects: statistics by hand, verdicts, settings that fit their models, coverage."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

import attnctl
from attnctl.bench.conditions import PLAIN
from attnctl.bench.edit.methods import Method
from attnctl.bench.edit.settings import CHOSEN
from attnctl.bench.effect.clips import ALL_CONDITIONS, ENTRIES
from attnctl.bench.effect.coverage import REASONS, SUITES, check_names, known_names, suites_of
from attnctl.bench.effect.edits import TECHNIQUES as EDITED
from attnctl.bench.effect.edits import technique_of
from attnctl.bench.effect.fast import SETTINGS
from attnctl.bench.effect.lines import (
    HARMS,
    HELPS,
    NOTHING_SEEN,
    EffectLine,
    Outcome,
    Subject,
    corrected,
    of_answers,
    of_mean,
    of_numbers,
    unmeasured,
)
from attnctl.bench.effect.parts import EffectSettings, folder_name
from attnctl.bench.effect.settings import (
    CANDIDATES,
    MODELS,
    PIPELINES,
    TECHNIQUES,
    Entry,
    conditions_of,
    entries_of,
    read_choice,
    recipes_of,
)
from attnctl.bench.effect.table import Effect
from attnctl.bench.effect.text import HEAD, effect_text, settings_of, table_rows
from attnctl.bench.statistics import holm, sign_test
from attnctl.errors import SettingError
from attnctl.pipelines.fitting import check
from attnctl.recipes import Recipe
from attnctl.registry import BUILT_IN
from attnctl.shapes.captions import prompts


@cache
def pipe_of(model: str) -> Any:
    return attnctl.load_pipeline(model)


def line(
    measure: str, came: Outcome, *, claimed: bool = True, technique: str = "pag"
) -> EffectLine:
    subject = Subject("pictures", technique, "shapes", "scale=1", "a file")
    return subject.line(measure, PLAIN, came, claimed=claimed)


def test_yes_or_no_outcomes_are_compared_by_mcnemar() -> None:
    before = [True] * 4 + [False] * 16
    after = [True] * 3 + [False] + [True] * 10 + [False] * 6
    came = of_answers(before, after, is_good=True)

    assert (came.count, came.baseline, came.steered) == (20, 0.2, 0.65)
    assert came.difference == pytest.approx(0.45)
    assert came.p_value == sign_test(10, 1)
    assert came.interval[0] > 0
    assert came.verdict == HELPS
    assert of_answers(before, after, is_good=False).verdict == HARMS
    assert of_answers(before, before, is_good=True).verdict == NOTHING_SEEN


def test_numbers_are_compared_case_by_case() -> None:
    before = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    came = of_numbers(before, [x - 0.5 for x in before], is_good=False)

    assert (came.baseline, came.steered, came.difference) == (4.5, 4.0, -0.5)
    assert came.p_value == pytest.approx(2 / 2**8)
    assert came.verdict == HELPS


def test_few_cases_and_single_means_say_nothing() -> None:
    few = of_numbers([1.0, 2.0], [2.0, 3.0], is_good=True)

    assert few.interval == (1.0, 1.0)  # every resample has the same mean
    assert few.p_value == 0.5
    assert few.verdict == NOTHING_SEEN
    assert of_mean([1.0, 2.0], is_good=True).verdict == NOTHING_SEEN
    assert Outcome(2, 9.0, 5.0, -4.0, (-4.0, -4.0), None, False, False).verdict == NOTHING_SEEN
    assert Outcome(90, 9.0, 5.0, -4.0, (-5.0, -3.0), None, False).verdict == HELPS


def test_p_values_are_corrected_by_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_counts_the_claimed_lines_that_have_a_p() -> None:
    sure = of_answers([False] * 20, [True] * 20, is_good=True)
    lines = corrected([
        line("exact", sure),
        line("all right", sure, claimed=False),
        line("distance to scenes", Outcome(90, 9.0, 5.0, -4.0, (-5.0, -3.0), None, False)),
        line("too few objects", of_answers([True] * 4, [True] * 4, is_good=False)),
    ])  # fmt: skip

    assert sure.p_value is not None
    assert [x.p_holm for x in lines] == [2 * sure.p_value, None, None, 1.0]


def test_lines_survive_their_file() -> None:
    listed = [
        line("exact", of_mean([0.5, 1.0], is_good=True)),
        unmeasured("vstar", "shapes", "why"),
    ]
    read = [EffectLine.of_plain(json.loads(json.dumps(x.to_plain()))) for x in listed]

    assert read == listed


def test_shares_are_shown_in_percent_and_settings_are_numbered() -> None:
    first = line("exact", of_answers([False] * 4, [True, False] * 2, is_good=True))
    second = Subject("pictures", "pag", "shapes", "scale=2", "a file").line(
        "warping error", PLAIN, of_numbers([0.01] * 4, [0.02] * 4, is_good=False), claimed=False
    )
    settings = settings_of([first, second])
    rows = [dict(zip(HEAD, row, strict=True)) for row in table_rows([first, second], settings)]

    assert [row["technique"] for row in rows] == ["pag (1)", "pag (2)"]
    assert (rows[0]["baseline"], rows[0]["steered"]) == ("0.0", "50.0")
    assert rows[0]["difference [95 %]"].startswith("+50.0 [")
    assert rows[1]["difference [95 %]"] == "+0.0100 [+0.0100, +0.0100]"


def test_the_text_says_that_p_is_not_corrected_and_names_what_is_absent(tmp_path: Any) -> None:
    listed = [
        line("exact", of_mean([0.5, 1.0], is_good=True)),
        unmeasured("vstar", "shapes", "why"),
    ]
    text = effect_text(
        Effect({"runs": {}}, listed, [("fast", "shapes", "token-merging")], [], {}, tmp_path)
    )

    assert "It is not corrected for the number of comparisons" in text
    assert "- `vstar` on `shapes`: why" in text
    assert "`--suite fast --model shapes`: token-merging" in text
    assert "1 claims measured: 0 helps, 0 harms, 1 no measurable effect." in text


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_technique_is_measured_or_has_a_reason(name: str, model: str) -> None:
    is_measured = bool(suites_of(name, model))
    assert is_measured != ((name, model) in REASONS)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_every_built_in_technique_is_measured_somewhere(name: str) -> None:
    has_reasons_everywhere = name in {
        "dit-flow",
        "focus-on-instruction",
    }
    assert any(suites_of(name, model) for model in MODELS) != has_reasons_everywhere


def test_no_reason_names_what_is_not_there() -> None:
    assert {name for name, _ in REASONS} <= set(BUILT_IN)
    assert {model for _, model in REASONS} == set(MODELS)


@pytest.mark.parametrize("model", sorted(CANDIDATES))
def test_every_setting_fits_its_model(model: str) -> None:
    asked = prompts("tests", 2, 2)
    singles = [e for e in TECHNIQUES if e.model == model]
    tried = [Entry(model, ((e.name, given),), 5.0, ()) for e in singles for given in e.tried]
    for entry in (*singles, *tried, *recipes_of(model)):
        condition = next(c for c in conditions_of([entry]) if c.name == entry.title)
        plain = {"prompt": asked[0].text, "steps": 25, "techniques": condition.entries(asked)}
        check(pipe_of(model), Recipe.from_dict(plain, name=""))


@pytest.mark.parametrize("model", sorted(CANDIDATES))
def test_what_is_tried_has_what_is_built_in_and_claims_are_known(model: str) -> None:
    for entry in entries_of(model):
        assert entry.claims
        assert entry.source
        if entry.tried and entry.name not in ("seg", "nag"):
            assert entry.parts[0][1] in entry.tried
    assert {len(e.parts) for e in entries_of(model) if e.is_recipe} == {2, 3}
    assert all(len(set(names)) == len(names) for names in CANDIDATES[model])


@pytest.mark.parametrize("model", sorted(CANDIDATES))
def test_chosen_edits_are_those_of_the_techniques(model: str) -> None:
    chosen = {technique_of(method) for method in CHOSEN.get(PIPELINES[model], [])}
    assert chosen <= set(EDITED[model])
    assert technique_of(Method("a", "rf-inversion", {"eta": 1.0})) == "rf-control"


def test_clips_and_fast_attention_name_what_exists() -> None:
    conditions = {condition.name for condition in ALL_CONDITIONS}
    assert {name for e in ENTRIES for name in (e.condition, e.against)} <= conditions
    assert set(SETTINGS) <= set(BUILT_IN)


def test_names_of_folders_are_short_and_differ() -> None:
    many = list(BUILT_IN)
    assert folder_name("pictures", "shapes", []) == "pictures-shapes"
    assert folder_name("pictures", "shapes", ["b", "a"]) == "pictures-shapes-a+b"
    assert len(folder_name("pictures", "shapes", many)) < 80
    assert folder_name("fast", "shapes", many) != folder_name("fast", "shapes", many[1:])


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(SettingError, match="--technique 'sof-pag'; did you mean 'soft-pag'"):
        check_names("--technique", ["sof-pag"], known_names())
    assert check_names("--suite", ["fast", "fast"], list(SUITES)) == ("fast",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "tuning"}, "never reported on them"),
        ({"split": "-3"}, "whole number"),
        ({"count": 1, "objects": (2,)}, "one picture"),
        ({"repeats": -1}, "--repeats -1"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        EffectSettings(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "choice.json of a --tune run"),
        ('{"shapes": {"techniques": {"pagg": {}}}}', "did you mean 'pag'"),
        ('{"shapes": {"techniques": {"pag": {"scale": -1}}}}', "scale"),
        ('{"shapes": {"recipes": [["pag", "pag"]]}}', "pag"),
        ('{"shapes": {"more": 1}}', "more"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused(tmp_path: Any, text: str, message: str) -> None:
    file = tmp_path / "choice.json"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        read_choice(file)
