"""The guidance benchmark on a tiny random model: table, tuning, choice, resumed runs."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from attnctl.bench.conditions import PLAIN
from attnctl.bench.guidance.conditions import (
    SWEEPS,
    Asked,
    table_conditions,
    tuning_conditions,
)
from attnctl.bench.guidance.measure import measure, settings_for
from attnctl.bench.guidance.settings import (
    CFG,
    Setting,
    choice_text,
    choose,
    make_grid,
    read_choice,
)
from attnctl.bench.guidance.text import HEAD, guidance_table, markdown
from attnctl.bench.journal import FILE_NAME
from attnctl.bench.quality import measure_distances, scenes_of
from attnctl.cli import main
from attnctl.errors import SettingError
from attnctl.shapes import prompts, render, verify
from attnctl.shapes.evaluate import SAMPLING

PAG = Setting(name="PAG", scale=2.0, strength=1.0, where="mid:self")
HEADS = Setting(name="SoftPAG heads", scale=2.0, strength=0.5, heads=((0, 0), (1, 1)))
PICTURES = 4


def run(pipe, folder: Path, settings=(PAG, HEADS), **more):
    asked = settings_for(pipe, "tiny", (1, 2), PICTURES // 2, "tuning", steps=2, batch_size=2)
    return measure(pipe, asked, table_conditions(settings), folder, **more)


def without_times(done):
    costs = [{"condition": c["condition"], "rows": c["rows"]} for c in done.costs]
    return {**done.record, "costs": costs}


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    import attnctl

    return run(attnctl.load_pipeline(tiny_folder), tmp_path_factory.mktemp("whole"))


def test_every_condition_draws_the_same_prompts_and_seeds(whole):
    assert whole.conditions == [PLAIN, CFG, "PAG", "SoftPAG heads"]
    drawn = {
        name: [(e["id"], e["prompt"], e["seed"]) for e in whole.entries if e["condition"] == name]
        for name in whole.conditions
    }
    assert all(listed == drawn[CFG] for listed in drawn.values())
    assert len(drawn[CFG]) == PICTURES


def test_each_condition_makes_other_pictures(whole):
    pixels = Counter(entry["pixels"] for entry in whole.entries)
    assert set(pixels.values()) == {1}


def test_everything_is_compared_to_classifier_free_guidance(whole):
    assert whole.line("exact", CFG).difference is None
    assert whole.line("exact", PLAIN).difference is not None
    reference, others = whole.frechet.rows[1], whole.frechet.rows[2:]
    assert (reference.condition, reference.difference) == (CFG, None)
    for row in others:
        assert row.difference == pytest.approx(row.distance - reference.distance)


def test_rows_of_the_denoiser_are_counted(whole):
    assert [cost["rows"] for cost in whole.costs] == [1, 2, 3, 3]


def test_a_run_that_was_stopped_is_resumed_to_the_same_result(tiny, tmp_path, whole):
    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, say=stop)
    journal = tmp_path / FILE_NAME
    journal.write_bytes(journal.read_bytes()[:-20])  # as if killed while writing
    again = run(tiny, tmp_path, resume=True)
    assert without_times(again) == without_times(whole)


def test_result_and_sheet_are_written(whole):
    files = whole.save("guidance-tiny")
    record = json.loads(files["result"].read_text())
    assert record["benchmark"] == "guidance"
    assert set(record["verdicts"]) == set(whole.conditions)
    assert len(record["prompts"]) == PICTURES
    assert len(record["features"]["weights"]) == 64
    assert Image.open(files["sheet"]).width > PICTURES * 192


def test_the_table_has_one_row_a_condition_and_the_floor(whole):
    rows = guidance_table(whole)
    assert [row[0] for row in rows] == [*whole.conditions, "rendered scenes"]
    assert {len(row) for row in rows} == {len(HEAD)}
    lines = markdown(HEAD, rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert {line.count("|") for line in lines} == {len(HEAD) + 1}


def test_reference_scenes_show_what_the_prompts_name():
    asked = [p for number in (1, 2, 3) for p in prompts("tuning", number, 8)]
    pictures = render(scenes_of(asked, torch.Generator().manual_seed(0)))
    verdicts = [verify(image, p.text) for image, p in zip(pictures, asked, strict=True)]
    assert sum(verdict.exact for verdict in verdicts) >= 23


def test_rendered_scenes_reach_the_floor_and_damaged_ones_do_not():
    asked = [p for number in (1, 2, 3) for p in prompts("tuning", number, 40)]
    good = render(scenes_of(asked, torch.Generator().manual_seed(9)))
    found = measure_distances({CFG: good, "pale": good * 0.5 + 0.25}, asked, CFG)
    fine, pale = found.rows
    assert fine.interval[0] < found.floor < fine.interval[1]
    assert pale.difference_interval is not None
    assert pale.difference_interval[0] > 0


def test_a_grid_has_every_combination():
    grid = make_grid([1, 3], [0.5, 1.0], {"mid": "mid:self", "found": [(1, 0), (1, 2)]})
    assert len({(s.scale, s.strength, s.place) for s in grid}) == len(grid) == 8
    assert {s.family for s in grid} == {"PAG", "SoftPAG 0.5", "SoftPAG heads"}
    names = [c.name for c in tuning_conditions(grid, [3])]
    assert names[:2] == [CFG, "CFG 3"]
    assert len(set(names)) == 10


def test_the_choice_has_most_exact_pictures_among_those_not_farther_than_cfg():
    near, far, nearer = make_grid([1, 2, 3], [0.5], {"mid": "mid:self"})
    alone_far = make_grid([1, 2], [1.0], {"mid": "mid:self"})
    exact = {near.name: 0.6, far.name: 0.9, nearer.name: 0.6}
    distance = {CFG: 5.0, near.name: 4.9, far.name: 5.1, nearer.name: 3.0}
    exact |= {alone_far[0].name: 0.9, alone_far[1].name: 0.1}
    distance |= {alone_far[0].name: 9.0, alone_far[1].name: 8.0}
    soft, hard = choose([near, far, nearer, *alone_far], exact, distance)
    assert (soft.name, soft.scale) == ("SoftPAG 0.5", 3)
    assert (hard.name, hard.scale) == ("PAG", 2)


def test_a_choice_is_read_back(tmp_path):
    file = tmp_path / "choice.json"
    file.write_text(choice_text([PAG, HEADS]))
    assert read_choice(file) == [PAG, HEADS]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "choice.json of a --tune run"),
        ('[{"name": "a", "scale": -1, "strength": 1, "where": "mid:self"}]', "greater than 0"),
        ('[{"name": "a", "scale": 1, "strength": 2, "where": "mid:self"}]', "less than or equal"),
        ('[{"name": "a", "scale": 1, "strength": 1}]', "either where or heads"),
        ('[{"name": "a", "scale": 1, "strength": 1, "heads": [[1]]}]', "heads"),
        ('[{"name": "a", "scale": true, "strength": 1, "where": "mid:self"}]', "scale"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused(tmp_path, text, message):
    file = tmp_path / "choice.json"
    file.write_text(text)
    with pytest.raises(SettingError, match=message):
        read_choice(file)


def test_options_of_a_sweep_are_refused_without_one(tmp_path):
    with pytest.raises(SettingError, match="add --tune"):
        Asked(scales=[1.0])
    with pytest.raises(SettingError, match="leave one of them out"):
        Asked(tune=True, choice=tmp_path)
    with pytest.raises(SettingError, match="--tune"):
        table_conditions([])


def test_guidance_of_one_is_no_reference(tiny):
    with pytest.raises(SettingError, match="more than 1"):
        settings_for(tiny, "tiny", (1,), 1, "tuning", guidance=1.0)


def test_a_pipeline_of_another_kind_is_refused():
    with pytest.raises(SettingError, match=r"no settings.*StableDiffusionPipeline"):
        settings_for(object(), "tiny", (1,), 1, "tuning")


@pytest.mark.parametrize("name", SWEEPS)
def test_built_in_values_can_be_used(name):
    sweep = SWEEPS[name]
    grid = make_grid(sweep.scales, sweep.strengths, {w: w for w in sweep.wheres})
    assert SAMPLING[name].guidance > 1
    assert tuning_conditions(grid, [])
    assert {s.name for s in sweep.chosen} == {s.family for s in sweep.chosen}


def test_the_command_tunes_and_then_compares_what_it_chose(tiny_folder, tmp_path, capsys):
    shared = ["bench", "guidance", "--model", str(tiny_folder), "--objects", "1", "--count", "2"]
    shared += ["--steps", "2", "--quiet", "--out"]
    found = tmp_path / "found.yaml"
    found.write_text("version: 1\nheads: [[0, 1], [2, 0]]\n")
    tried = ["--scale", "2", "--strength", "0.5", "--where", "mid:self", "--other-guidance", "3"]
    tried += ["--heads", str(found)]
    assert main([*shared, str(tmp_path / "tuning"), "--tune", *tried]) == 0
    text = capsys.readouterr().out
    assert "- SoftPAG 0.5: scale 2, strength 0.5, mid:self" in text
    assert "- SoftPAG heads: scale 2, strength 0.5, 2 heads" in text
    choice = tmp_path / "tuning" / "choice.json"
    assert main([*shared, str(tmp_path / "table"), "--choice", str(choice), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["settings"]["split"] == "validation"
    assert [c["name"] for c in record["conditions"]] == [PLAIN, CFG, "SoftPAG 0.5", "SoftPAG heads"]
    assert Path(record["files"]["sheet"]).is_file()
