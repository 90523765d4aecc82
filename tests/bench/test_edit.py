"""The edit benchmark: cases with a known answer, scores, the comparison, whole and resumed runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from attnctl.bench.edit.cases import KINDS, make_cases
from attnctl.bench.edit.comparison import compare, success_at
from attnctl.bench.edit.measure import CHOICE_FILE, EditBenchSettings, Edits, choose_of, measure
from attnctl.bench.edit.methods import NOTHING, REGENERATE, SDEDIT, Method, filled_settings
from attnctl.bench.edit.scores import background_of, psnr, score
from attnctl.bench.edit.settings import BASELINES, CHOSEN, GRIDS, methods_for, read_choice
from attnctl.bench.edit.text import edit_text
from attnctl.errors import SettingError
from attnctl.registry import build
from attnctl.shapes import verify

CASES = make_cases("tests", 20)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_right_answer_scores_full_and_the_source_does_not(case: Any) -> None:
    right, wrong = score(case, case.answer), score(case, case.picture)
    assert right["success"], right
    assert right["psnr"] > 30
    assert not wrong["reached"]
    assert wrong["kept"]
    assert wrong["psnr"] == 60
    assert verify(case.picture, str(case.source)).exact
    assert verify(case.answer, str(case.target)).exact


def test_every_kind_of_edit_is_there_in_turn_and_lists_share_nothing() -> None:
    assert [case.kind for case in CASES[:5]] == list(KINDS)
    assert make_cases("tests", 7)[6].source == CASES[6].source
    other = make_cases("others", 20)
    assert not {c.seed for c in other} & {c.seed for c in CASES}
    assert [c.source for c in other] != [c.source for c in CASES]


def test_a_lost_object_and_a_changed_background_cost() -> None:
    case = next(c for c in CASES if c.kind == "colour")
    white = Image.new("RGB", case.picture.size, "white")
    lost = score(case, white)
    assert not lost["kept"]
    assert not lost["success"]
    assert lost["psnr"] < 20
    changed = np.asarray(case.answer).copy()
    changed[~case.region] = 255 - changed[~case.region]
    inside = np.asarray(case.answer).copy()
    inside[case.region] = 0
    assert score(case, Image.fromarray(changed))["psnr"] < score(case, case.answer)["psnr"]
    assert score(case, Image.fromarray(inside))["psnr"] == 60


def test_backgrounds_are_named_by_their_brightness() -> None:
    for level, name in ((0.1, "dark"), (0.5, "grey"), (0.9, "light")):
        assert background_of(np.full((8, 8, 3), level)) == name
    assert psnr(np.zeros((4, 3)), np.full((4, 3), 0.1)) == pytest.approx(20)


def entry(method: str, place: int, success: bool, decibels: float) -> dict[str, Any]:
    return {
        "condition": method, "id": f"{place:03d}", "kind": "colour", "reached": success,
        "kept": True, "success": success, "psnr": decibels, "ssim": 0.9,
    }  # fmt: skip


def test_methods_are_compared_with_sdedit_at_equal_preservation() -> None:
    strong, weak = f"{SDEDIT} [0.9]", f"{SDEDIT} [0.4]"
    plan = {
        NOTHING: (0.0, 40.0), weak: (0.2, 30.0), strong: (0.8, 20.0), REGENERATE: (0.8, 15.0),
        "good": (0.9, 30.0), "bad": (0.0, 20.0), "alike": (0.5, 25.0),
    }  # fmt: skip
    entries = [
        entry(name, place, place < 50 * share, decibels + 0.01 * (place % 5))
        for name, (share, decibels) in plan.items()
        for place in range(50)
    ]
    lines = {line.method: line for line in compare(entries, list(plan))}
    assert lines["good"].sdedit == pytest.approx(0.2, abs=1e-6)
    assert lines["good"].gained_success is not None
    assert lines["good"].gained_success[0] == pytest.approx(0.7, abs=1e-6)
    verdicts = {name: line.verdict for name, line in lines.items()}
    assert verdicts == {
        NOTHING: "", weak: "", strong: "", REGENERATE: "not shown",
        "good": "yes", "bad": "no", "alike": "not shown",
    }  # fmt: skip
    for name in ("good", "bad", "alike"):
        gained_p = lines[name].gained_p
        assert gained_p is not None
        assert (gained_p < 0.05) == (name != "alike")
    assert lines["good"].gained_psnr is not None
    assert lines["good"].gained_psnr[0] == pytest.approx(15)
    assert lines["good"].by_kind == {"colour": 0.9}
    points = np.array([20.0, 40.0]), np.array([1.0, 0.0])
    assert [success_at(x, *points) for x in (10, 30, 50)] == [1, 0.5, 0]


TINY = (
    Method(NOTHING, "nothing"),
    Method(REGENERATE, "regenerate"),
    Method(f"{SDEDIT} [0.5]", "sdedit", {"strength": 0.5}),
    Method("FlowEdit", "flow-edit", {"share": 1.0, "source_guidance": 1.0, "target_guidance": 3.0}),
    Method("P2P [a]", "technique", {"technique": "prompt-to-prompt", "blend": True}),
    Method("P2P [b]", "technique", {"technique": "prompt-to-prompt", "self_replace_steps": 0.0}),
    Method("Masa", "technique", {"technique": "masa-ctrl", "start_layer": 2, "steps": "1-"}),
)


def test_a_stopped_run_goes_on_and_its_table_names_what_does_not_win(
    tiny: Any, tmp_path: Path
) -> None:
    settings = EditBenchSettings("tiny", count=2, split="tests", steps=2, guidance=3.0)
    told: list[str] = []

    def stop(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tiny, settings, TINY, tmp_path / "a", say=stop)
    half = (tmp_path / "a" / "images.jsonl").read_text()
    done = measure(tiny, settings, TINY, tmp_path / "a", resume=True, say=told.append)
    assert (tmp_path / "a" / "images.jsonl").read_text().startswith(half)
    assert [line.count for line in done.lines] == [2] * len(TINY)
    assert len(told) == 2
    whole = measure(tiny, settings, TINY, tmp_path / "b")
    assert whole.record == done.record
    files = done.save("edit-tiny")
    assert json.loads(files["result"].read_text())["benchmark"] == "edit"
    assert Image.open(files["sheet"]).size[0] > 400
    assert "Does not beat SDEdit at equal preservation: " in edit_text(done)
    chosen = choose_of(done, TINY)
    assert chosen[0].name == "FlowEdit"
    assert len(chosen) == 3
    assert read_choice(tmp_path / "a" / CHOICE_FILE) == chosen
    with pytest.raises(SettingError, match="other settings"):
        measure(tiny, replace(settings, steps=3), TINY, tmp_path / "a", resume=True)


def test_what_preserves_hardly_more_than_a_new_picture_is_not_chosen(tmp_path: Path) -> None:
    methods = [Method(f"FlowEdit [share={s}]", "flow-edit", {"share": s}) for s in (0.5, 0.9)]
    figures = {  # PSNR of two cases, successes of two cases
        NOTHING: ((40.0, 40.0), (False, False)),
        REGENERATE: ((20.0, 20.0), (True, False)),
        f"{SDEDIT} [0.5]": ((30.0, 30.0), (False, False)),
        f"{SDEDIT} [0.9]": ((15.0, 15.0), (True, False)),
        methods[0].name: ((30.0, 30.0), (True, False)),
        methods[1].name: ((22.0, 22.0), (True, True)),
    }
    entries = [
        {"condition": name, "id": str(i), "kind": "colour", "reached": won[i], "kept": True,
         "success": won[i], "psnr": psnrs[i], "ssim": 0.9}
        for name, (psnrs, won) in figures.items()
        for i in range(2)
    ]  # fmt: skip
    lines = compare(entries, list(figures))
    (chosen,) = choose_of(Edits({}, lines, entries, [], tmp_path), methods)

    assert chosen.settings == {"share": 0.5}
    assert lines[5].gained_success is not None
    assert lines[4].gained_success is not None
    assert lines[5].gained_success[0] > lines[4].gained_success[0]


def test_every_setting_of_the_table_can_be_built() -> None:
    needs_words = {"flux-space": {"prompt": "a red circle"}}
    for methods in (*GRIDS.values(), *CHOSEN.values()):
        names = [method.name for method in (*BASELINES, *methods)]
        slugs = [method.slug for method in (*BASELINES, *methods)]
        assert len(set(names)) == len(set(slugs)) == len(names)
        for method in methods:
            given = dict(method.settings)
            name = given.pop("technique", None)
            if name is not None:
                own = {k: v for k, v in given.items() if k not in ("blend", "eta", "stop")}
                build(name, {**needs_words.get(name, {}), **own})


@pytest.mark.parametrize("kind", KINDS)
def test_words_and_signs_follow_from_the_edit(kind: str) -> None:
    case = next(c for c in CASES if c.kind == kind)
    for methods in GRIDS.values():
        for method in methods:
            given = dict(method.settings)
            name = given.pop("technique", None)
            if name is None:
                continue
            own = {k: v for k, v in given.items() if k not in ("eta", "stop")}
            filled = filled_settings(case, name, own)
            built: Any = build(name, filled)
            if name == "flux-space":
                assert (built.fine < 0) == (kind == "remove")
                assert built.prompt.startswith("a ")
            if name == "prompt-to-prompt":
                assert built.edit == ("refine" if kind in ("add", "remove") else "replace")


def test_mistakes_are_told_before_anything_is_drawn(tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="nothing to choose"):
        methods_for(tiny, tune=True, choice=tmp_path / "choice.json")
    with pytest.raises(SettingError, match=r"choice\.json"):
        methods_for(tiny, tune=False, choice=tmp_path / "choice.json")
    (tmp_path / "choice.json").write_text('[{"name": "a", "kind": "b", "settings": {}}]')
    with pytest.raises(SettingError, match="no way to edit called 'b'"):
        methods_for(tiny, tune=False, choice=tmp_path / "choice.json")
    with pytest.raises(SettingError, match="--count 0"):
        EditBenchSettings(count=0)
