"""What is seen while pictures are made: preview, progress, who acts, and what went wrong."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from .job import Snapshot

EMPTY = (
    '<div class="ac-stage ac-empty" role="status">'
    '<div class="ac-marks" aria-hidden="true"><i></i><i></i><i></i></div>'
    "<h3>Nothing made yet</h3>"
    "<p>Write what the picture shows, click words that must not be left out, press Generate. "
    "Or drop in a picture that was made here: it brings its settings back.</p></div>"
)


def stage_html(snapshot: Snapshot) -> str:
    """Show how a job stands; every text in it is escaped."""
    if snapshot.state == "failed":
        return error_html(snapshot.error, finished=len(snapshot.pairs))
    if snapshot.state in ("done", "stopped"):
        return _ended(snapshot)
    if snapshot.state == "waiting":
        ahead = snapshot.ahead
        text = f"{ahead} {'job' if ahead == 1 else 'jobs'} before this one" if ahead else "starting"
        return _running("In the queue", text, None, snapshot)
    if snapshot.state == "loading":
        return _running("Loading the model", "and checking the settings", None, snapshot)
    if not snapshot.total:
        return _running(snapshot.making, "starting", None, snapshot)
    left = _seconds(snapshot.seconds_left)
    text = f"step {snapshot.done} of {snapshot.total}{f' · about {left} left' if left else ''}"
    share = snapshot.done / snapshot.total
    return _running(snapshot.making, text, share, snapshot)


def error_html(text: str, finished: int = 0) -> str:
    """Say what went wrong."""
    kept = f"<p>{_pictures(finished)} kept.</p>" if finished else ""
    lines = "<br>".join(escape(text).splitlines())
    return (
        '<div class="ac-stage ac-error" role="alert"><h3>That did not work</h3>'
        f'<p class="ac-message">{lines}</p>{kept}</div>'
    )


def _ended(snapshot: Snapshot) -> str:
    is_done = snapshot.state == "done"
    took = f"in {_seconds(snapshot.seconds)}" if is_done else ""
    many = _pictures(len(snapshot.pairs)) if snapshot.pairs else ""
    words = [many, took] if is_done else [f"{many} kept" if many else "nothing was finished"]
    return (
        f'<div class="ac-stage ac-ended" role="status" data-state="{snapshot.state}">'
        f"<b>{'Done' if is_done else 'Stopped'}</b> {escape(' '.join(filter(None, words)))}</div>"
    )


def _running(title: str, text: str, share: float | None, snapshot: Snapshot) -> str:
    acting = "".join(f'<span class="ac-chip">{escape(name)}</span>' for name in snapshot.active)
    value = "" if share is None else f' value="{share:.4f}"'
    return (
        f'<div class="ac-stage ac-running" role="status" data-state="{snapshot.state}">'
        f'<div class="ac-preview">{_preview(snapshot.preview)}</div>'
        f'<div class="ac-now"><h3>{escape(title)}</h3>'
        f'<progress max="1"{value} aria-label="progress"></progress>'
        f'<p class="ac-steps">{escape(text)}</p>'
        f'<p class="ac-acting">{"acting now: " + acting if acting else "&nbsp;"}</p></div></div>'
    )


def _preview(image: Image.Image | None) -> str:
    if image is None:
        return ""
    file = io.BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="the unfinished picture" src="data:image/png;base64,{data}">'


def _pictures(count: int) -> str:
    return f"{count} {'picture' if count == 1 else 'pictures'}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
