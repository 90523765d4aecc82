"""What a job file may not reach: other folders, addresses, devices, downloads; and hostile text."""

import json
import os
import shutil

import pytest

from attnctl.batch import JobFileError, Limits, read_jobs
from tests.batch.conftest import CIRCLE, manifest


@pytest.fixture
def refusal(tmp_path, monkeypatch):
    """Put one job into a file inside an empty folder, and say why it is refused."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def refuse(**values):
        path = folder / "jobs.jsonl"
        path.write_text(json.dumps({"prompt": "a", **values}))
        with pytest.raises(JobFileError) as caught:
            read_jobs(path)
        return str(caught.value)

    return refuse


def test_models_outside_of_the_folders_are_refused(refusal, tmp_path, tiny_model):
    assert "lies outside" in refusal(model=str(tiny_model))
    (tmp_path / "beside").mkdir()
    assert "lies outside" in refusal(model="../beside")
    os.symlink(tiny_model, tmp_path / "jobs" / "link")
    assert "lies outside" in refusal(model="link")
    assert "lies outside" in refusal(model="/dev")


@pytest.mark.parametrize(
    "model", ["file:///etc", "http://169.254.169.254/latest", "https://x/y", "C:\\models"]
)
def test_addresses_are_refused(refusal, model):
    assert "is an address" in refusal(model=model)


def test_a_model_that_is_not_here_is_not_downloaded(refusal):
    assert "--download" in refusal(model="nobody/nothing")
    assert "no model" in refusal(model="shape")
    assert "no model" in refusal(model="a\0b")


def test_a_model_inside_or_named_by_the_user_is_fine(tmp_path, tiny_model):
    shutil.copytree(tiny_model, tmp_path / "inside")
    path = tmp_path / "jobs.jsonl"
    path.write_text(json.dumps({"prompt": "a", "model": str(tmp_path / "inside")}))
    assert len(read_jobs(path).jobs) == 1
    path.write_text(json.dumps({"prompt": "a", "model": str(tiny_model)}))
    trusted = Limits.around(tmp_path, trusted=frozenset({str(tiny_model)}))
    assert len(read_jobs(path, limits=trusted).jobs) == 1
    assert len(read_jobs(path, limits=Limits.around(tiny_model.parent)).jobs) == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("/etc/hostname", "lies outside"),
        ("../x.yaml", "lies outside"),
        ("file:///etc/hostname", "is an address"),
        ("/dev/zero", "lies outside"),
        ("none.yaml", "no file"),
    ],
)
def test_files_of_techniques_stay_inside_too(refusal, name, says):
    assert says in refusal(techniques=[{"soft-pag": {"heads": name}}])
    entry = {"name": "soft-pag", "parameters": {"heads": name}}
    assert says in refusal(techniques=[entry])


def test_a_job_cannot_say_where_its_picture_goes(refusal):
    assert "unknown key 'out'" in refusal(out="../elsewhere.png")
    assert "unknown key 'custom_pipeline'" in refusal(custom_pipeline="x/y")
    assert "unknown key 'trust_remote_code'" in refusal(trust_remote_code=True)


def test_the_page_shows_hostile_text_as_text(batch, tmp_path):
    hostile = '<script>alert(1)</script> & "quoted" <img src=x onerror=alert(1)>'
    batch([{"prompt": hostile}])
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<script" not in page
    assert "onerror=alert(1)&gt;" in page
    assert "&lt;script&gt;" in page
    assert page.count("<img ") == 1


@pytest.mark.parametrize("prompt", ["", " ", "🦊 עברית", "a\0b", "word " * 20_000], ids=ascii)
def test_odd_prompts_are_drawn_and_kept(batch, tmp_path, prompt):
    outcome, _ = batch([{"prompt": prompt, "steps": 1}])
    assert outcome.done == 1
    assert manifest(tmp_path / "out")[0]["prompt"] == prompt


def test_secrets_do_not_reach_the_manifest_or_the_page(batch, tmp_path):
    token = "hf_" + "a" * 30
    batch([{"prompt": f"{CIRCLE} {token}", "steps": 1}])
    for path in (tmp_path / "out").iterdir():
        assert token.encode() not in path.read_bytes(), path.name
