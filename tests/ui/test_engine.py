"""The queue: one job at a time, stopped within a step, the model as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnctl.cli.studio import silence_loading
from attnctl.recipes import Recipe
from attnctl.ui import Limits, StudioSettings
from attnctl.ui.drawing import Order
from attnctl.ui.engine import Engine, QueueFullError
from tests.support.fingerprint import differences, fingerprint
from tests.ui.jobs import end_of, first_step_of

PROMPT = "a red circle and a blue square"
WAITING = 60


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    silence_loading()
    made = Engine(
        StudioSettings(
            models=("shapes",),
            out=tmp_path_factory.mktemp("engine"),
            limits=Limits(waiting=WAITING),
        )
    )
    yield made
    made.close()


def order(steps: int = 2, techniques: list[Any] | None = None, **fields: Any) -> Order:
    options = {name: fields.pop(name) for name in ("compare", "maps") if name in fields}
    recipe = Recipe.from_dict(
        {"prompt": PROMPT, "seed": 5, "steps": steps, "techniques": techniques or [], **fields}
    )
    return Order(recipe, **options)


def test_a_run_counts_its_steps_and_names_who_acts(engine: Engine) -> None:
    job = engine.submit(order(3, [{"pag": {"steps": "0-2"}}], compare=True))
    acting = {}
    seen, snapshot = 0, job.snapshot
    while not snapshot.is_ended:
        seen, snapshot = job.wait(seen, 60)
        acting[snapshot.done] = snapshot.active
    assert (snapshot.state, snapshot.done, snapshot.total) == ("done", 6, 6)
    assert acting[6] == ()
    (pair,) = snapshot.pairs
    assert pair.steered.recipe.seed == 5
    assert pair.plain is not None
    assert pair.steered.image.tobytes() != pair.plain.image.tobytes()


def test_a_stopped_job_frees_the_queue_within_one_step(engine: Engine) -> None:
    long, short = engine.submit(order(200)), engine.submit(order(1))
    first_step_of(long)
    assert short.snapshot.state == "waiting"
    assert short.snapshot.ahead == 1
    engine.stop(long)
    done = long.snapshot.done
    stopped = end_of(long)
    assert stopped.state == "stopped"
    assert stopped.done <= done + 1
    assert end_of(short).state == "done"


def test_finished_pictures_survive_a_stop(engine: Engine) -> None:
    job = engine.submit(order(8, count=16))
    seen, snapshot = 0, job.snapshot
    while not snapshot.pairs:
        seen, snapshot = job.wait(seen, 60)
    engine.stop(job)
    stopped = end_of(job)
    assert stopped.state == "stopped"
    assert 1 <= len(stopped.pairs) < 16


def test_a_job_that_waits_is_stopped_at_once_and_the_rest_moves_up(engine: Engine) -> None:
    jobs = [engine.submit(order(200)), *(engine.submit(order(1)) for _ in range(3))]
    first_step_of(jobs[0])
    assert [job.snapshot.ahead for job in jobs[1:]] == [1, 2, 3]
    engine.stop(jobs[1])
    assert jobs[1].snapshot.state == "stopped"
    assert [job.snapshot.ahead for job in jobs[2:]] == [1, 2]
    for job in jobs:
        engine.stop(job)
        end_of(job)


def test_a_full_queue_takes_no_more(engine: Engine) -> None:
    running = engine.submit(order(200))
    first_step_of(running)
    waiting = [engine.submit(order(1)) for _ in range(WAITING)]
    with pytest.raises(QueueFullError, match=f"{WAITING} jobs are waiting"):
        engine.submit(order(1))
    for job in [*waiting, running]:
        engine.stop(job)
    assert end_of(running).state == "stopped"


def test_a_mistake_is_told_and_the_next_job_runs(engine: Engine) -> None:
    wrong = end_of(engine.submit(order(2, [{"attend-and-excite": {"subjects": ["dog"]}}])))
    assert wrong.state == "failed"
    assert "'dog' is not in the prompt" in wrong.error
    assert end_of(engine.submit(order(1))).state == "done"


def test_fifty_mixed_jobs_leave_no_trace_on_the_pipeline(engine: Engine) -> None:
    plain = end_of(engine.submit(order(2))).pairs[0].steered.image.tobytes()
    pipe, _ = engine._pipelines["shapes"]
    before = fingerprint(pipe)
    exciting = {"attend-and-excite": {"subjects": ["circle"], "steps": "0-50%", "thresholds": {}}}
    kinds: list[tuple[dict[str, Any], str]] = [
        ({}, "done"),
        ({"techniques": ["pag"], "compare": True}, "done"),
        ({"techniques": [exciting, {"nag": {"negative_prompt": "a cross"}}]}, "done"),
        ({"techniques": ["seg", "apg"], "maps": "off", "scheduler": "EulerDiscreteScheduler"},
         "done"),
        ({"techniques": [{"tpg": {"blocks": [1]}}, "heat-maps"], "maps": "whole run"}, "done"),
        ({"techniques": [{"attend-and-excite": {"subjects": ["dog"]}}]}, "failed"),
        ({"techniques": ["pag", "cfg-zero-star"], "steps": 200}, "stopped"),
        ({"size": "65x64"}, "failed"),
        ({"techniques": [exciting], "steps": 200, "compare": True}, "stopped"),
        ({"negative": "a cross", "techniques": ["token-merging"]}, "done"),
    ]  # fmt: skip
    for number in range(50):
        fields, expected = kinds[number % len(kinds)]
        job = engine.submit(order(**fields))
        if expected == "stopped":
            first_step_of(job)
            engine.stop(job)
        ended = end_of(job)
        assert ended.state == expected, (fields, ended.error)
    assert differences(before, fingerprint(pipe)) == []
    assert end_of(engine.submit(order(2))).pairs[0].steered.image.tobytes() == plain


def test_previews_show_the_colours_of_the_latents(engine: Engine) -> None:
    job = engine.submit(order(8, prompt="a red circle on a light background"))
    seen, snapshot, preview = 0, job.snapshot, None
    while not snapshot.is_ended:
        seen, snapshot = job.wait(seen, 60)
        preview = snapshot.preview or preview
    assert preview is not None
    image = snapshot.pairs[0].steered.image.resize(preview.size)
    assert np.abs(np.asarray(preview, float) - np.asarray(image, float)).mean() < 40


def test_pictures_are_saved_where_they_belong(tmp_path: Path, engine: Engine) -> None:
    from attnctl.ui.outputs import Outputs
    from attnctl.ui.visit import Visit

    outside = tmp_path / "outside.png"
    outside.write_bytes(b"mine")
    outputs = Outputs(tmp_path / "out", tmp_path / "handed")
    visit = Visit()
    hostile = order(1, prompt="../../etc/passwd \0 file:///root <b>", maps="off")
    pair = end_of(engine.submit(hostile)).pairs[0]
    shown = outputs.keep(pair, visit)
    (made,) = (tmp_path / "out").iterdir()
    assert made.name.startswith("etc-passwd-file-root-b-s5-plain-")
    made.unlink()
    made.symlink_to(outside)
    outputs.keep(pair, visit)
    assert outside.read_bytes() == b"mine"
    assert not made.is_symlink()
    assert shown.file.parent.parent == tmp_path / "handed"
    assert len(visit.shown) == 2
