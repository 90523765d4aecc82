"""The steering benchmark on a tiny random model: what is written, resumed, repeated."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from attnctl.bench.conditions import read_conditions
from attnctl.bench.journal import FILE_NAME
from attnctl.bench.sheets import save_sheets
from attnctl.bench.steering import RESULT_FILE, SteeringSettings, measure
from attnctl.bench.tally import table
from attnctl.cli import main
from attnctl.errors import SettingError

SETTINGS = SteeringSettings("tiny", objects=(1, 2), count=3, split="tuning", steps=2, batch_size=2)
STEERED = "attend-and-excite:scale_factor=30"
OFF = "attend-and-excite:scale_factor=0"


def run(pipe, folder: Path, texts=(STEERED, OFF), settings=SETTINGS, **more):
    return measure(pipe, settings, read_conditions(list(texts), []), folder, **more)


def result(folder: Path):
    """What is the same each time: everything but the times."""
    record = json.loads((folder / RESULT_FILE).read_text())
    for cost in record["costs"]:
        del cost["seconds"], cost["time_ratio"]
    return record


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    import attnctl

    pipe = attnctl.load_pipeline(tiny_folder)
    folder = tmp_path_factory.mktemp("whole")
    return run(pipe, folder)


def test_every_prompt_is_drawn_in_every_condition(whole):
    record = result(whole.folder)
    assert [c["name"] for c in record["conditions"]] == ["plain", STEERED, OFF]
    drawn = {(image["condition"], image["id"]) for image in record["images"]}
    assert len(drawn) == len(record["images"]) == 3 * 2 * 3
    for image in record["images"]:
        assert Image.open(whole.folder / image["file"]).size == (64, 64)


def test_conditions_share_prompts_and_seeds(whole):
    for condition in (STEERED, OFF):
        mine = [
            (e["id"], e["prompt"], e["seed"]) for e in whole.entries if e["condition"] == condition
        ]
        assert mine == [
            (e["id"], e["prompt"], e["seed"]) for e in whole.entries if e["condition"] == "plain"
        ]


def test_a_technique_that_is_off_gives_the_plain_pictures_and_no_difference(whole):
    pixels = {(e["condition"], e["id"]): e["pixels"] for e in whole.entries}
    names = {name for _, name in pixels}
    assert all(pixels["plain", name] == pixels[OFF, name] for name in names)
    assert any(pixels["plain", name] != pixels[STEERED, name] for name in names)
    off = [line for line in whole.lines if line.condition == OFF]
    assert all((line.difference, line.p_value) == (0.0, 1.0) for line in off)


def test_the_result_says_what_was_measured(whole):
    record = result(whole.folder)
    assert record["format"] == 2
    assert record["settings"]["count"] == 3
    assert set(record["machine"]["versions"]) == {"attnctl", "torch", "diffusers", "transformers"}
    assert record["model"]["scheduler"]["class"] == "DDIMScheduler"
    assert len(record["model"]["weights"]) == 64
    assert set(record) == {
        "format", "benchmark", "settings", "conditions", "model", "verifier", "machine",
        "results", "costs", "images",
    }  # fmt: skip


def test_gradient_passes_are_counted(whole):
    costs = {cost["condition"]: cost["gradient_passes"] for cost in result(whole.folder)["costs"]}
    assert costs["plain"] == costs[OFF] == 0
    assert costs[STEERED] >= 2


def test_two_runs_are_identical(tiny, tmp_path, whole):
    again = run(tiny, tmp_path)
    assert table(again.lines) == table(whole.lines)
    assert result(tmp_path) == result(whole.folder)


def test_a_run_that_was_stopped_is_resumed_to_the_same_result(tiny, tmp_path, whole):
    def stop(text):
        if text.startswith("batch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path, say=stop)
    journal = tmp_path / FILE_NAME
    journal.write_bytes(journal.read_bytes()[:-20])  # as if killed while writing
    (tmp_path / "pictures" / "1-00000-plain.png").unlink()
    steps = []
    run(tiny, tmp_path, resume=True, on_step=steps.append)
    assert sum(steps) == 3 * 2 * 3 * SETTINGS.steps
    assert result(tmp_path) == result(whole.folder)


def test_a_finished_run_is_read_back_without_drawing(tiny, tmp_path, whole, monkeypatch):
    run(tiny, tmp_path)
    monkeypatch.setattr("attnctl.bench.steering.draw", None)
    run(tiny, tmp_path, resume=True)
    assert result(tmp_path) == result(whole.folder)


def test_other_settings_are_refused_in_the_same_folder(tiny, tmp_path):
    run(tiny, tmp_path)
    with pytest.raises(SettingError, match="other settings"):
        run(tiny, tmp_path, texts=[STEERED], resume=True)


def test_sheets_show_the_first_prompts_and_the_changes(whole):
    for entry in whole.entries:  # random pictures are never right: pretend that two are
        entry["all_right"] = entry["condition"] == STEERED and entry["id"].endswith("1")
    paths = save_sheets(whole, most=2)
    assert sorted(paths) == ["changed-1", "first"]
    assert Image.open(paths["first"]).height > Image.open(paths["changed-1"]).height / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "whole number"),
        ({"split": "validate"}, "'validation'"),
        ({"objects": (2, 2)}, "different numbers"),
        ({"objects": (4,)}, "from 1 to 3"),
        ({"count": 0}, "--count 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        SteeringSettings(**changes)


def command(model: Path, out: Path, *more: str) -> list[str]:
    settings = ["--objects", "1", "--count", "4", "--steps", "2", "--batch-size", "1"]
    return ["bench", "steering", "--model", str(model), "--out", str(out), *settings,
            "-t", STEERED, *more]  # fmt: skip


def test_command_prints_the_table_and_where_everything_is(tiny_folder, tmp_path, capsys):
    assert main(command(tiny_folder, tmp_path)) == 0
    shown = capsys.readouterr()
    for word in ("all right", "exact", "too few objects", "missing objects", STEERED, "plain"):
        assert word in shown.out
    assert str(tmp_path / RESULT_FILE) in shown.out
    assert "batch 4 of 4" in shown.err
    assert main(command(tiny_folder, tmp_path)) == 2
    assert "--resume" in capsys.readouterr().err


def test_command_prints_one_json_object(tiny_folder, tmp_path, capsys):
    assert main(command(tiny_folder, tmp_path, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["benchmark"] == "steering"
    assert Path(record["files"]["first"]).exists()


def test_command_refuses_a_wrong_technique_and_writes_nothing(tiny_folder, tmp_path, capsys):
    wrong = ["bench", "steering", "--out", str(tmp_path / "x"), "-t", "atend-and-excite"]
    assert main(wrong) == 2
    assert "did you mean 'attend-and-excite'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_result(tiny_folder, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    start = [sys.executable, "-m", "attnctl"]
    more = ["--count", "12", "--quiet"]
    process = subprocess.Popen([*start, *command(tiny_folder, killed, *more)], env=os.environ)
    journal = killed / FILE_NAME
    patience = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 6:
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / RESULT_FILE).exists()
    assert main(command(tiny_folder, killed, *more, "--resume")) == 0
    assert main(command(tiny_folder, whole, *more)) == 0
    assert result(killed) == result(whole)
