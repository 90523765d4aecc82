import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

import attnctl
from attnctl.batch import BatchStoppedError, jobs_from
from attnctl.batch.manifest import merge
from attnctl.errors import SettingError
from attnctl.imaging import read_record
from tests.batch.conftest import CIRCLE, manifest, pictures

ROWS = [{"prompt": CIRCLE, "seed": seed} for seed in range(6)]
EXCITE = [{"attend-and-excite": {"subjects": ["circle"], "thresholds": {}}}]
LATE = "word " * 200 + "circle"  # the model does not see its last words


def states(folder):
    return [entry["status"] for entry in manifest(folder)]


def started(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def job_file(tmp_path, tiny_model):
    path = tmp_path / "jobs.jsonl"
    lines = [{"defaults": {"steps": 2, "model": str(tiny_model)}}, *ROWS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def command(job_file, tiny_model):
    return ["-m", "attnctl", "batch", job_file, "--root", tiny_model]


def test_each_job_has_a_whole_file_a_line_and_a_place_on_the_page(batch, tmp_path):
    outcome, said = batch([*ROWS[:2], {"prompt": CIRCLE, "techniques": ["pag"]}])
    out = tmp_path / "out"
    assert (outcome.done, outcome.failed, outcome.made) == (3, 0, 3)
    assert len(said) == 3
    lines = manifest(out)
    assert [line["path"] for line in lines] == list(pictures(out))
    assert [line["seed"] for line in lines] == [0, 1, 0]
    assert [line["techniques"] for line in lines] == [[], [], ["pag"]]
    record = read_record(out / lines[2]["path"])
    assert record["recipe"]["seed"] == 0
    page = (out / "index.html").read_text()
    assert all(line["path"] in page for line in lines)
    with Image.open(outcome.files["sheet"]) as sheet:
        assert sheet.width > 3 * 192


def test_a_picture_is_the_one_that_generate_makes(run, job_file, batch, tiny_model, tmp_path):
    ran = run("batch", job_file, "--root", tiny_model, "--out", tmp_path / "b", "--limit", 1)
    assert ran.code == 0, ran.err
    path = next(iter((tmp_path / "b").glob("*.png")))
    assert path.read_bytes()
    again = run("generate", "--from", path, "--out", tmp_path / "again", "--json")
    assert again.json["pictures"][0]["identical"]


@pytest.mark.parametrize(
    "techniques",
    [[], ["pag"], EXCITE, ["token-merging"]],
    ids=["plain", "pag", "attend-and-excite", "token-merging"],
)
def test_a_picture_does_not_depend_on_the_batch_size(batch, tmp_path, techniques):
    rows = [{**row, "techniques": techniques, "prompt": p} for row, p in
            zip(ROWS, [CIRCLE, "a circle", "a blue circle"] * 2, strict=True)]  # fmt: skip
    batch(rows, "alone")
    _, said = batch(rows, "together", batch_size=2)
    assert pictures(tmp_path / "together") == pictures(tmp_path / "alone")
    assert not [text for text in said if "one by one" in text]


def test_order_and_company_do_not_change_a_picture(batch, tmp_path):
    batch(ROWS, "all")
    batch([ROWS[4], ROWS[1]], "two")
    every = {name.split("-")[1]: data for name, data in pictures(tmp_path / "all").items()}
    few = {name.split("-")[1]: data for name, data in pictures(tmp_path / "two").items()}
    assert len(few) == 2
    assert few.items() <= every.items()


def test_where_a_batch_changes_pictures_they_are_made_one_by_one(
    batch, tmp_path, tiny_pipe, monkeypatch
):
    batch(ROWS, "alone")
    together = lambda _self, inputs, out: (out[0] * (1 + 0.1 * (len(inputs[0]) > 2)),)  # noqa: E731
    handle = tiny_pipe.unet.register_forward_hook(together)
    _, said = batch(ROWS, "together", batch_size=2)
    handle.remove()
    assert pictures(tmp_path / "together") == pictures(tmp_path / "alone")
    assert any("one by one" in text for text in said)


def test_a_killed_batch_goes_on_to_the_same_bytes(batch, command, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert started([*command, "--out", whole, "--quiet"]).wait(timeout=120) == 0
    process = started([*command, "--out", out, "--quiet"])
    while len(pictures(out)) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(pictures(out)) < 6
    assert not (out / "manifest.jsonl").exists()
    (out / f".{next(iter(pictures(whole)))}.ab12.partial").write_bytes(b"half")
    with open(out / "manifest.rank0.jsonl", "ab") as file:
        file.write(b'{"id": "cut o')
    assert started([*command, "--out", out, "--resume", "--quiet"]).wait(timeout=120) == 0
    assert pictures(out) == pictures(whole)
    assert states(out) == ["done"] * 6
    assert len({line["id"] for line in manifest(out)}) == 6


def test_three_processes_share_a_batch_and_one_may_be_idle(batch, command, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "out"
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3"]
    process = started([*launch, *command, "--out", out, "--limit", 2, "--batch-size", 4])
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    own = [row.read_text().count('"done"') for row in sorted(out.glob("manifest.rank*"))]
    assert own == [1, 1, 0]
    assert started([*command, "--out", alone, "--limit", 2, "--quiet"]).wait(timeout=120) == 0
    assert pictures(out) == pictures(alone)


def test_without_the_manifest_of_a_process_its_jobs_are_absent(batch, tmp_path):
    batch(ROWS[:3])
    out = tmp_path / "out"
    lines = (out / "manifest.rank0.jsonl").read_text().splitlines(keepends=True)
    (out / "manifest.rank0.jsonl").write_text("".join(lines[:2]))
    (out / "manifest.jsonl").unlink()
    listed = jobs_from(ROWS[:3], defaults={"steps": 2})
    assert merge(out, listed.jobs) == {"done": 1, "failed": 0, "absent": 2}
    assert states(out) == ["done", "absent", "absent"]
    outcome, _ = batch(ROWS[:3], resume=True)
    assert (outcome.done, outcome.made) == (3, 2)


def test_resume_makes_only_what_is_not_there_whole(batch, tmp_path):
    batch(ROWS[:3])
    out = tmp_path / "out"
    before = pictures(out)
    names = list(before)
    (out / names[1]).write_bytes(before[names[1]][:-5])
    (out / names[2]).unlink()
    outcome, _ = batch(ROWS[:3], resume=True)
    assert outcome.made == 2
    assert pictures(out) == before
    outcome, _ = batch(ROWS[:4], resume=True)
    assert (outcome.done, outcome.made) == (4, 1)


def test_a_folder_with_a_batch_is_not_overwritten(batch):
    batch(ROWS[:1])
    with pytest.raises(SettingError, match="--resume"):
        batch(ROWS[:1])


def test_one_bad_job_is_noted_and_the_others_are_made(batch, tmp_path):
    rows = [{"prompt": text, "techniques": EXCITE} for text in (CIRCLE, LATE, "a circle")]
    for place in range(3):  # also where it is the first that is looked at
        outcome, said = batch([*rows[-place:], *rows[:-place]], f"out{place}")
        assert (outcome.done, outcome.failed) == (2, 1)
        entries = manifest(tmp_path / f"out{place}")
        (failed,) = [entry for entry in entries if entry["status"] == "failed"]
        assert "truncated" in failed["error"] or "cut off" in failed["error"]
        assert any("failed" in text for text in said)


def test_fail_fast_stops_at_the_first_failure(batch, tmp_path):
    rows = [{"prompt": text, "techniques": EXCITE} for text in (LATE, CIRCLE)]
    with pytest.raises(BatchStoppedError):
        batch(rows, fail_fast=True)
    assert states(tmp_path / "out") == ["failed", "absent"]


def test_a_failed_job_is_tried_again_by_resume(batch, tiny_pipe, tmp_path):
    handle = tiny_pipe.unet.register_forward_pre_hook(out_of_memory(0))
    outcome, _ = batch(ROWS[:2])
    handle.remove()
    assert outcome.failed == 2
    assert "out of memory" in manifest(tmp_path / "out")[0]["error"]
    outcome, _ = batch(ROWS[:2], resume=True)
    assert outcome.done == 2
    assert states(tmp_path / "out") == ["done", "done"]


def out_of_memory(most_rows):
    def refuse(_module, inputs):
        if len(inputs[0]) > most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    return refuse


def test_a_batch_that_needs_too_much_memory_is_made_one_by_one(batch, tiny_pipe, tmp_path):
    batch(ROWS, "alone")
    handle = tiny_pipe.unet.register_forward_pre_hook(out_of_memory(2))
    outcome, said = batch(ROWS, "together", batch_size=3)
    handle.remove()
    assert outcome.done == 6
    assert pictures(tmp_path / "together") == pictures(tmp_path / "alone")
    assert any("out of memory" in text for text in said)


def test_numbers_that_are_not_finite_are_a_failure_not_a_black_picture(batch, tiny_model, tmp_path):
    for part, inside in (("unet", "conv_in"), ("vae", "decoder.conv_in")):
        broken = attnctl.load_pipeline(tiny_model)
        broken.set_progress_bar_config(disable=True)
        with torch.no_grad():
            getattr(broken, part).get_submodule(inside).weight.fill_(float("nan"))
        outcome, _ = batch(ROWS[:1], part, load=lambda _name, pipe=broken: pipe)
        assert outcome.failed == 1
        assert ("finite" if part == "unet" else "not numbers") in manifest(tmp_path / part)[0][
            "error"
        ]
        assert not pictures(tmp_path / part)


def test_a_full_disk_stops_the_batch_and_leaves_no_half_picture(
    run, job_file, tiny_model, tmp_path
):
    out = tmp_path / "out"
    command = ("batch", job_file, "--root", tiny_model, "--quiet", "--out")
    arguments = (*command, out)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        ran = run(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert ran.code == 1
    assert "File too large" in ran.err
    assert not list(out.glob("*.png"))
    assert not list(out.glob(".*.partial"))
    assert run(*arguments, "--resume").code == 0
    assert run(*command, tmp_path / "b").code == 0
    assert pictures(out) == pictures(tmp_path / "b")


def test_a_folder_that_cannot_be_written_is_told(run, job_file, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    ran = run("batch", job_file, "--root", tiny_model, "--out", tmp_path / "file" / "out")
    assert ran.code == 1
    assert str(tmp_path / "file") in ran.err


def test_an_interrupt_keeps_what_is_finished(batch, tmp_path):
    steps = []

    def on_step(count):
        steps.append(count)
        if len(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch(ROWS, on_step=on_step)
    assert states(tmp_path / "out") == ["done"] * 2 + ["absent"] * 4
    outcome, _ = batch(ROWS, resume=True)
    assert (outcome.done, outcome.made) == (6, 4)


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(command, tmp_path):
    out = tmp_path / "out"
    process = started([*command, "--out", out])
    while not pictures(out):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "--resume" in said
    assert set(states(out)) == {"done", "absent"}


def test_a_dry_run_counts_and_writes_nothing(run, job_file, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("attnctl.load_pipeline", lambda *_args, **_kwargs: pytest.fail("loaded"))
    out = tmp_path / "out"
    ran = run("batch", job_file, "--root", tiny_model, "--out", out, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pictures"] == ran.json["to_make"] == 6
    assert ran.json["steps"] == 12
    assert not out.exists()
    ran = run("batch", job_file, "--root", tiny_model, "--out", out, "--dry-run")
    assert "6 pictures" in ran.out


def test_the_command_tells_results_and_failures(run, job_file, tiny_model, tmp_path):
    out = tmp_path / "out"
    job_file.write_text(job_file.read_text() + json.dumps({"prompt": LATE, "techniques": EXCITE}))
    ran = run("batch", job_file, "--root", tiny_model, "--out", out, "--json")
    assert ran.code == 1, ran.err
    told = {name: ran.json[name] for name in ("done", "failed", "absent", "made")}
    assert told == {"done": 6, "failed": 1, "absent": 0, "made": 6}
    again = run("batch", job_file, "--root", tiny_model, "--out", out, "--json")
    assert again.code == 2


def test_the_pipeline_is_as_before_after_a_batch(batch, tiny_pipe):
    from tests.support.fingerprint import fingerprint

    batch(ROWS[:1], "first")  # a pipeline's first call sets attributes of its own
    before = fingerprint(tiny_pipe)
    batch([{**row, "techniques": ["pag"]} for row in ROWS], batch_size=2)
    assert fingerprint(tiny_pipe) == before
