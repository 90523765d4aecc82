import numpy as np
import pytest

from attnctl.batch import jobs_from
from attnctl.recipes import Recipe
from attnctl.video import read_video, read_video_record
from tests.batch.conftest import manifest
from tests.support.pipelines import build

JOB = {"prompt": "a cat", "steps": 1, "frames": 5, "size": "16x16", "fps": 12.0}


@pytest.fixture(scope="module")
def wan():
    pipe = build("wan")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_clips_are_written_with_their_recipe_and_the_same_again(batch, tmp_path, wan):
    rows = [{**JOB, "seed": seed} for seed in (1, 2)]
    outcome, _ = batch(rows, "first", load=lambda _name: wan)
    assert outcome.done == 2
    first, second = sorted((tmp_path / "first").glob("*.mp4"))
    clip = read_video(first)
    assert clip.frames.shape == (5, 16, 16, 3)
    assert clip.rate == 12
    assert (clip.frames != read_video(second).frames).any()
    recipe = Recipe.from_dict(read_video_record(first)["recipe"])
    assert (recipe.seed, recipe.frames, recipe.fps) == (1, 5, 12.0)
    assert (tmp_path / "first" / "contact-sheet.jpg").is_file()
    assert (
        f'<video controls preload="metadata" src="{first.name}">'
        in (tmp_path / "first" / "index.html").read_text()
    )
    batch(rows[1:], "second", load=lambda _name: wan, batch_size=4)
    (again,) = (tmp_path / "second").glob("*.mp4")
    assert np.array_equal(read_video(again).frames, read_video(second).frames)
    assert again.read_bytes() == second.read_bytes()


def test_a_picture_model_makes_no_clips(batch, tmp_path):
    outcome, _ = batch([JOB])
    assert outcome.failed == 1
    assert "takes no num_frames" in manifest(tmp_path / "out")[0]["error"]


def test_frames_belong_to_the_id():
    jobs = jobs_from([{**JOB, "seed": 1}, {**JOB, "seed": 1, "frames": 9}])
    assert len({job.id for job in jobs.jobs}) == 2
