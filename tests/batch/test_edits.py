import json

import pytest
from PIL import Image

from attnctl.batch import JobFileError, read_jobs
from attnctl.imaging import read_record
from tests.batch.conftest import manifest

EDIT = {"image": "in.png", "source": "a red circle", "target": "a blue circle", "steps": 2}


@pytest.fixture
def jobs_of(tmp_path, monkeypatch):
    """Read jobs that lie beside a picture."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(folder / "in.png")
    (folder / "broken.png").write_bytes((folder / "in.png").read_bytes()[:60])
    (tmp_path / "outside.png").write_bytes((folder / "in.png").read_bytes())

    def read(*rows):
        path = folder / "jobs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_jobs(path)

    return read


def test_edits_and_pictures_are_made_side_by_side(jobs_of, tiny_pipe, tmp_path):
    from attnctl.batch import BatchRun, BatchSettings

    plain = {"prompt": "a blue circle", "seed": 0, "steps": 2}
    jobs = jobs_of({**EDIT, "seed": 0}, plain, {**EDIT, "seed": 0, "method": "sdedit"})
    outs = tmp_path / "first", tmp_path / "second"
    for out in outs:
        outcome = BatchRun(jobs, out, BatchSettings(), load=lambda _name: tiny_pipe).run()
        assert outcome.done == 3, manifest(out)
    first, second = ([(out / e["path"]).read_bytes() for e in manifest(out)] for out in outs)
    assert first == second
    assert len(set(first)) == 3
    record = read_record(outs[0] / manifest(outs[0])[0]["path"])
    assert record["edit"]["source"] == "a red circle"
    assert record["edit"]["picture"]["name"] == "in.png"
    assert record["recipe"]["prompt"] == "a blue circle"


def test_what_is_in_the_picture_decides_about_the_id(jobs_of, tmp_path):
    folder = tmp_path / "jobs"
    (one,) = jobs_of({**EDIT, "seed": 1}).jobs
    (folder / "same.png").write_bytes((folder / "in.png").read_bytes())
    (same,) = jobs_of({**EDIT, "seed": 1, "image": "same.png"}).jobs
    Image.new("RGB", (64, 64)).save(folder / "in.png")
    (other,) = jobs_of({**EDIT, "seed": 1}).jobs
    assert one.id == same.id != other.id


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"image": "../outside.png"}, "lies outside"),
        ({"image": "/etc/hostname"}, "lies outside"),
        ({"image": "/dev/zero"}, "lies outside"),
        ({"image": "file:///in.png"}, "is an address"),
        ({"image": "http://x/in.png"}, "is an address"),
        ({"image": "none.png"}, "no file"),
        ({"image": "broken.png"}, "broken.png"),
        ({"image": "jobs.jsonl"}, "no picture"),
        ({"image": 3}, "must be a text"),
        ({"source": " "}, "the source prompt is empty"),
        ({"method": "ddin"}, "did you mean 'ddim'"),
        ({"scheduler": "DDIMScheduler"}, "leave it out"),
        ({"prompt": "a blue circle"}, "needs `target:`"),
    ],
)
def test_an_edit_that_cannot_be_is_refused_with_its_line(jobs_of, values, says):
    with pytest.raises(JobFileError, match=r"jobs\.jsonl:1:\d+: ") as caught:
        jobs_of({**EDIT, **values})
    assert says in str(caught.value)


def test_an_edit_without_its_parts_says_what_is_missing(jobs_of):
    with pytest.raises(JobFileError, match="needs `image:`"):
        jobs_of({"source": "a", "target": "b"})
    with pytest.raises(JobFileError, match="needs `source:`"):
        jobs_of({"image": "in.png", "target": "b"})
