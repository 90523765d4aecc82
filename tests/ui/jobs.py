"""Watch jobs of an engine."""

from __future__ import annotations

from attnctl.ui.job import Job, Snapshot


def end_of(job: Job) -> Snapshot:
    seen = 0
    while True:
        seen, snapshot = job.wait(seen, 60)
        if snapshot.is_ended:
            return snapshot


def first_step_of(job: Job) -> Snapshot:
    seen = 0
    while True:
        seen, snapshot = job.wait(seen, 60)
        assert not snapshot.is_ended, snapshot.error
        if snapshot.done:
            return snapshot
