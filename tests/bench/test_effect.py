"""``bench effect`` on the bundled models at tiny size: repeated, resumed, merged, held out."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import attnctl
from attnctl.bench.effect.lines import UNMEASURED
from attnctl.bench.effect.parts import PART_FILE, EffectSettings
from attnctl.bench.effect.settings import MODELS, read_choice
from attnctl.bench.effect.table import COSTS_FILE, RESULT_FILE, Asked, Effect, measure
from attnctl.bench.effect.text import TABLE_FILE, save_text
from attnctl.bench.effect.tuning import choose_settings
from attnctl.bench.journal import FILE_NAME
from attnctl.cli import main
from attnctl.errors import SettingError

SETTINGS = EffectSettings(
    count=1, objects=(1, 2), edits=1, clips=1, frames=2, fast=1, repeats=0, steps=2, batch_size=1
)
EXCITE, RECIPE = "attend-and-excite", "attend-and-excite+soft-pag"
PICTURES = Asked(("pictures",), ("heat-maps", EXCITE, RECIPE), ("shapes",))


@cache
def load(model: str) -> Any:
    pipe = attnctl.load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(folder: Path, asked: Asked = PICTURES, settings: EffectSettings = SETTINGS, **more: Any):
    done = measure(settings, asked, folder, load, **more)
    save_text(done)
    return done


def compared(folder: Path) -> tuple[bytes, bytes]:
    """What two runs must have in common: everything but the times."""
    return (folder / RESULT_FILE).read_bytes(), (folder / TABLE_FILE).read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Effect:
    return run(tmp_path_factory.mktemp("whole"))


def test_a_technique_is_compared_with_plain_and_a_recipe_with_its_parts_too(whole: Effect) -> None:
    found = {(x.technique, x.baseline_name) for x in whole.lines if x.suite == "pictures"}
    assert found == {
        ("heat-maps", "plain"), (EXCITE, "plain"), ("soft-pag", "plain"),
        (RECIPE, "plain"), (RECIPE, EXCITE), (RECIPE, "soft-pag"),
    }  # fmt: skip
    assert all(x.count == 2 for x in whole.lines if x.measure in ("exact", "all right"))
    claims = {(x.technique, x.measure) for x in whole.lines if x.claimed}
    assert {(EXCITE, "all right"), (EXCITE, "too few objects"), (RECIPE, "exact")} <= claims
    assert not any(x.claimed for x in whole.lines if x.technique == "soft-pag")


def test_heat_maps_change_no_picture(whole: Effect) -> None:
    [line] = [x for x in whole.lines if x.technique == "heat-maps" and x.model == "shapes"]
    assert (line.measure, line.claimed, line.steered) == ("pictures changed", True, 0.0)


def test_few_pictures_say_nothing_about_a_distance(whole: Effect) -> None:
    lines = [x for x in whole.lines if x.measure == "distance to scenes"]
    assert lines
    assert {x.verdict for x in lines} == {"no measurable effect"}
    assert all("too few pictures" in x.note for x in lines)


def test_what_cannot_be_measured_and_what_is_not_measured_yet_are_named(whole: Effect) -> None:
    absent = {x.technique for x in whole.lines if x.verdict == UNMEASURED and x.model == "shapes"}
    assert absent == {
        "broadway", "dit-flow", "ditctrl", "flux-space", "focus-on-instruction", "head-router",
        "motion-flow", "rf-control", "stable-flow", "vico", "vstar",
    }  # fmt: skip
    assert ("fast", "shapes", "token-merging") in whole.missing
    assert ("pictures", "shapes", EXCITE) not in whole.missing


def test_times_are_no_part_of_the_table(whole: Effect) -> None:
    assert b"seconds" not in b"".join(compared(whole.folder))
    costs = json.loads((whole.folder / COSTS_FILE).read_text())
    assert {cost["condition"] for cost in costs} >= {
        "plain",
        EXCITE,
        "attend-and-excite + soft-pag",
    }
    assert all(cost["seconds"] > 0 for cost in costs)


def test_there_is_a_sheet_of_the_first_prompts(whole: Effect) -> None:
    [path] = [path for name, path in whole.sheets.items() if name.endswith("first")]
    assert path == whole.folder / f"pictures-shapes-{EXCITE}+{RECIPE}+heat-maps" / path.parts[
        -2
    ] / ("sheet.png")
    assert Image.open(path).width > 200


def test_two_runs_are_identical_even_if_one_was_killed(whole: Effect, tmp_path: Path) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, say=stop)
    [journal] = tmp_path.rglob(FILE_NAME)
    journal.write_bytes(journal.read_bytes()[:-20])  # as if killed while writing
    assert not list(tmp_path.rglob(PART_FILE))
    with pytest.raises(SettingError, match="--resume"):
        run(tmp_path)
    run(tmp_path, resume=True)
    assert compared(tmp_path) == compared(whole.folder)


def test_several_calls_fill_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, Asked(("fast",), ("re-ttention",), ("shapes",)), steps(4))
    run(tmp_path, Asked(("clips",), ("token-flow",), ("shapes",)))
    run(tmp_path, Asked(("motion",), ("vstar",), ("shapes-motion",)))
    asked = Asked(("edits",), ("masa-ctrl", "trajectory-replay"), ("shapes",))
    done = run(tmp_path, asked)

    suites = {x.technique: x.suite for x in done.lines if x.count}
    assert suites["re-ttention"] == "fast"
    assert suites["token-flow"] == "clips"
    assert suites["vstar"] == "motion"
    assert suites["masa-ctrl"] == suites["trajectory-replay"] == "edits"
    assert len([name for name in done.sheets if name.endswith("first")]) == 4
    against = {x.technique: x.baseline_name for x in done.lines if x.claimed}
    assert against["re-ttention"] == "sparse-attention, the mask alone"
    assert against["token-flow"] == "per-frame"
    assert {x.baseline_name for x in done.lines if x.technique == "masa-ctrl" and x.claimed} == {
        "SDEdit", "regenerated",
    }  # fmt: skip
    monkeypatch.setattr("attnctl.bench.edit.measure._make", None)  # all is read back
    monkeypatch.setattr("attnctl.bench.effect.motion._make", None)
    again = Asked(("motion",), ("vstar",), ("shapes-motion",))
    assert run(tmp_path, again, resume=True).record == done.record
    assert run(tmp_path, asked, resume=True).record == done.record


def steps(number: int) -> EffectSettings:
    values = SETTINGS.to_plain() | {"steps": number, "objects": (1, 2)}
    return EffectSettings(**values)


def test_a_held_out_list_has_prompts_of_its_own_and_a_table_of_its_own(
    whole: Effect, tmp_path: Path
) -> None:
    values = SETTINGS.to_plain() | {"split": "77", "objects": (1, 2)}
    asked = Asked(("pictures",), ("heat-maps",), ("shapes",))
    held_out = run(tmp_path, asked, EffectSettings(**values))
    mine, theirs = (
        {str(json.loads(text)["seed"]) for text in path.read_text().splitlines()[1:]}
        for folder in (held_out.folder, whole.folder)
        for path in sorted(folder.rglob(FILE_NAME))[:1]
    )
    assert len(mine) == len(theirs) == 2
    assert not mine & theirs
    assert "of the list `77`" in (tmp_path / TABLE_FILE).read_text()
    with pytest.raises(SettingError, match="--split 77"):
        run(tmp_path, asked)


def test_settings_are_chosen_on_tuning_prompts_and_then_reported(tmp_path: Path) -> None:
    asked = Asked((), ("cfg-zero-star",), ("shapes-mmdit",))
    chosen = choose_settings(SETTINGS, asked, tmp_path / "tuning", load)
    [record] = list((tmp_path / "tuning").rglob(FILE_NAME))
    assert [row[-1] for row in chosen.rows].count("yes") == 1
    choice = read_choice(chosen.file)
    assert set(choice["shapes-mmdit"].techniques["cfg-zero-star"]) == {"zero_steps"}
    assert choice == chosen.choice

    values = SETTINGS.to_plain() | {"choice": choice, "objects": (1, 2)}
    done = run(tmp_path / "table", asked, EffectSettings(**values))
    lines = [x for x in done.lines if x.technique == "cfg-zero-star"]
    assert {x.source for x in lines} == {"attnctl bench effect --tune"}
    [other] = list((tmp_path / "table").rglob(FILE_NAME))
    seeds = [
        {json.loads(text)["seed"] for text in path.read_text().splitlines()[1:]}
        for path in (record, other)
    ]
    assert not seeds[0] & seeds[1]
    with pytest.raises(SettingError, match="settings to try"):
        choose_settings(SETTINGS, Asked((), ("heat-maps",)), tmp_path / "none", load)


def test_the_command_writes_the_table_and_tells_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", "shapes-mmdit", "--suite", "pictures", "-t", "heat-maps"]
    small = ["--count", "1", "--objects", "1,2", "--steps", "1", "--out", str(tmp_path), "--quiet"]
    assert main(["bench", "effect", *asked, *small]) == 0
    shown = capsys.readouterr().out
    assert "| shapes-mmdit | heat-maps | pictures changed | 2 |" in shown
    assert str(tmp_path / TABLE_FILE) in shown
    assert main(["bench", "effect", *asked, *small, "--resume", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert Path(record["files"]["costs"]).exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["-t", "atend-and-excite"], "did you mean 'attend-and-excite'"),
        (["--suite", "picture"], "did you mean 'pictures'"),
        (["--model", "shape"], "did you mean 'shapes'"),
        (["--split", "tuning"], "never reported on them"),
        (["--choice", "none.json"], "choice.json of a --tune run"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], message: str
) -> None:
    assert main(["bench", "effect", "--out", str(tmp_path / "x"), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_all_models_are_bundled() -> None:
    assert {load(model).__class__.__name__ for model in MODELS} == {
        "StableDiffusionPipeline", "StableDiffusion3Pipeline", "AnimateDiffPipeline",
    }  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_is_resumed_to_the_same_table(whole: Effect, tmp_path: Path) -> None:
    command = ["bench", "effect", "--suite", "pictures", "--model", "shapes", "--objects", "1,2"]
    command += ["--count", "1", "--steps", "2", "--batch-size", "1", "--out", str(tmp_path)]
    command += ["--edits", "1", "--clips", "1", "--frames", "2", "--fast", "1", "--repeats", "0"]
    command += [text for name in PICTURES.techniques for text in ("-t", name)]
    process = subprocess.Popen([sys.executable, "-m", "attnctl", *command, "--quiet"])
    patience = time.monotonic() + 120
    while not any(path.read_bytes().count(b"\n") > 3 for path in tmp_path.rglob(FILE_NAME)):
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / RESULT_FILE).exists()
    assert main([*command, "--quiet", "--resume"]) == 0
    assert compared(tmp_path) == compared(whole.folder)
