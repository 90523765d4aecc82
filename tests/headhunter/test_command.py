"""``attnctl headhunter``: mistakes, a killed search that goes on, and two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.headhunter import toy

ROOT = Path(__file__).parents[2]
REDNESS = "tests.headhunter.toy:redness"


@pytest.fixture
def arguments(tiny_model, tmp_path, monkeypatch):
    """A command line without ``--out``."""
    monkeypatch.chdir(ROOT)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\n")
    return [
        "headhunter", "--model", tiny_model, "--objective", REDNESS, "--prompts", prompts,
        "--layers", "3-4", "--rounds", "2", "--per-round", "1", "--steps", "1", "--no-plot",
    ]  # fmt: skip


def changed(arguments, name, value):
    place = arguments.index(name)
    return [*arguments[: place + 1], value, *arguments[place + 2 :]]


def results(folder):
    return {name: (folder / name).read_bytes() for name in ("heads.yaml", "scores.json")}


def started(command, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_command_tells_what_it_found_and_where(run, arguments, tmp_path):
    ran = run(*arguments, "--out", tmp_path / "out", "--json")
    assert ran.code == 0, ran.err
    assert len(ran.json["heads"]) == 2
    assert Path(ran.json["files"]["heads"]).is_file()
    again = run(*arguments, "--out", tmp_path / "out", "--resume")
    assert again.code == 0, again.err
    assert "best so far layer" in again.err
    assert f"soft-pag:heads={tmp_path / 'out' / 'heads.yaml'},scale=3" in again.out


def test_a_found_set_is_used_by_the_command_line(run, arguments, tmp_path, tiny_model):
    from attnctl.imaging import read_record

    assert run(*arguments, "--out", tmp_path / "out", "--quiet").code == 0
    heads = tmp_path / "out" / "heads.yaml"
    asked = ["generate", "a red circle", "--model", tiny_model, "--steps", 2, "--seed", 1, "--json"]
    asked += ["-t", f"soft-pag:heads={heads},scale=3", "--out", tmp_path / "pictures"]
    ran = run(*asked)
    assert ran.code == 0, ran.err
    (picture,) = (tmp_path / "pictures").glob("*.png")
    heads.unlink()  # the picture carries the heads, not the name of their file
    parameters = read_record(picture)["recipe"]["techniques"][0]["soft-pag"]
    assert len(parameters["heads"]["heads"]) == 2
    again = run("generate", "--from", picture, "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_result(run, arguments, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*arguments, "--out", whole, "--quiet").code == 0
    journal = killed / "scores-0.jsonl"
    search = started(["-m", "attnctl", *arguments, "--out", killed], TOY_PAUSE="0.5")
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 5:
        assert search.poll() is None, search.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    search.send_signal(signal.SIGKILL)
    search.communicate()
    assert not (killed / "heads.yaml").exists()
    kept = journal.read_bytes().count(b"\n") - 1
    with open(journal, "ab") as file:
        file.write(b'{"round": 1, "layer": 4, "head": 0, "pro')  # what a kill may leave
    toy.calls.clear()
    ran = run(*arguments, "--out", killed, "--resume", "--quiet")
    assert ran.code == 0, ran.err
    assert results(killed) == results(whole)
    assert len(toy.calls) == (4 + 3) * 2 - kept


@pytest.mark.slow
def test_two_processes_share_a_search_and_find_the_same(run, arguments, tmp_path):
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert run(*arguments, "--out", alone, "--quiet").code == 0
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    team = started([*launch, "-m", "attnctl", *arguments, "--out", shared])
    said, _ = team.communicate(timeout=240)
    assert team.returncode == 0, said
    assert results(shared) == results(alone)
    lines = [(shared / f"scores-{i}.jsonl").read_bytes().count(b"\n") - 1 for i in (0, 1)]
    assert lines == [8, 6]  # 2 of 4 heads and then 2 or 1 of 3, with two prompts
    toy.calls.clear()  # one process goes on where two have stopped
    assert run(*arguments, "--out", shared, "--resume", "--quiet").code == 0
    assert toy.calls == []


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("--objective", "shape", "did you mean 'shapes'"),
        ("--objective", "tests.headhunter.toy:rednes", "did you mean 'redness'"),
        ("--prompts", "nowhere.txt", "there is no file 'nowhere.txt'"),
        ("--layers", "99", "no layer 99; there are 0 to 9"),
        ("--layers", "few", "layers='few'"),
        ("--rounds", "0", "--rounds 0"),
        ("--per-round", "9", "more than the 4 heads"),
        ("--steps", "0", "steps"),
        ("--model", "no-such-model", "no-such-model"),
    ],
)
def test_a_bad_option_is_explained_and_nothing_is_written(
    run, arguments, tmp_path, name, value, message
):
    ran = run(*changed(arguments, name, value), "--out", tmp_path / "out")
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["--objective", "--prompts"])
def test_a_missing_option_is_explained(run, arguments, tmp_path, missing):
    place = arguments.index(missing)
    ran = run(*arguments[:place], *arguments[place + 2 :], "--out", tmp_path / "out")
    assert ran.code == 2
    assert missing in ran.err


def test_another_search_in_the_same_folder_is_refused(run, arguments, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert run(*arguments, *out, "--quiet").code == 0
    ran = run(*arguments, *out)
    assert ran.code == 2
    assert "--resume" in ran.err
    ran = run(*arguments, *out, "--resume", "--scale", 4)
    assert ran.code == 2
    assert "settings.scale 3.0 then, 4.0 now" in ran.err
