"""How much memory a computation takes at its peak, on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

T = TypeVar("T")


def peak_bytes(run: Callable[[], T]) -> tuple[T, int]:
    """Run once and add up what torch's allocators give out and take back.

    Args:
        run: What to weigh; its result counts, its inputs do not.

    Returns:
        The result, and the most bytes that were held at one time.
    """
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, profile_memory=True) as seen:
        result = run()
    kineto = seen.profiler.kineto_results if seen.profiler is not None else None
    listed: list[Any] = [] if kineto is None else list(kineto.events())
    events = [event for event in listed if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return result, most
