"""What a person looks at after a batch: a page with every picture, and a contact sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from attnctl.batch.jobs import BatchJob, JobList
from attnctl.batch.manifest import ABSENT, DONE, Entry
from attnctl.errors import AttnctlError
from attnctl.files import new_file, write_text
from attnctl.imaging import without_secrets
from attnctl.sheets import Cell, draw_grid

PAGE_PICTURES = 400
"""More pictures than these go to further pages."""

SHEET_PICTURES = 100
"""The sheet shows so many, evenly chosen if there are more."""

SHEET_COLUMNS = 10
THUMBNAIL_PX = 192

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; background: #fafaf9; color: #1c1c1e }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(12rem, 1fr)); gap: 1rem;
     list-style: none; padding: 0 }
li { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .5rem;
     overflow-wrap: anywhere }
img, video { width: 100%; image-rendering: auto }
small { color: #555 } .failed { color: #b22222 } nav a { margin-right: .7rem }
"""
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head><body>
<h1>{title}</h1><p>{summary}</p>{links}<ol>
"""


def write_index(
    out: Path, list_: JobList, jobs: Sequence[BatchJob], entries: Mapping[str, Entry]
) -> Path:
    """Write ``index.html``, and further pages if there are many pictures; all text is escaped."""
    states = [entries.get(job.id, {}).get("status", ABSENT) for job in jobs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    pages = range(0, len(jobs), PAGE_PICTURES)
    names = [f"index-{number}.html" if number else "index.html" for number in range(len(pages))]
    links = "".join(
        f'<a href="{name}">{start + 1} to {min(start + PAGE_PICTURES, len(jobs))}</a> '
        for name, start in zip(names, pages, strict=True)
    )
    head = _HEAD.format(
        title=escape(Path(list_.name).name),
        style=_STYLE,
        summary=f"{len(jobs)} pictures: {counts}",
        links=f"<nav>{links}</nav>" if len(names) > 1 else "",
    )
    for name, start in zip(names, pages, strict=True):
        items = "".join(_items(list_, jobs[start : start + PAGE_PICTURES], entries))
        write_text(out / name, f"{head}{items}</ol></body></html>\n")
    return out / "index.html"


def write_sheet(
    out: Path, name: str, jobs: Sequence[BatchJob], entries: Mapping[str, Entry]
) -> Path | None:
    """Write ``contact-sheet.jpg``; ``None`` if there is no picture."""
    there = [job for job in jobs if entries.get(job.id, {}).get("status") == DONE]
    stride = max(1, -(-len(there) // SHEET_PICTURES))
    cells = [
        Cell(image, without_secrets(f"{job.number}: {job.prompt}"))
        for job in there[::stride]
        if (image := _thumbnail(out / entries[job.id]["path"])) is not None
    ]
    if not cells:
        return None
    shown = f"{len(cells)} of {len(there)}" if len(cells) < len(there) else f"{len(cells)}"
    columns = min(len(cells), SHEET_COLUMNS)
    sheet = draw_grid(cells, columns=columns, title=f"{Path(name).name}: {shown} pictures")
    path = out / "contact-sheet.jpg"
    with new_file(path) as file:
        sheet.save(file, format="JPEG", quality=90)
    return path


def _items(list_: JobList, jobs: Sequence[BatchJob], entries: Mapping[str, Entry]) -> Iterator[str]:
    for job in jobs:
        entry = entries.get(job.id, {"status": ABSENT})
        shown = f'<p class="failed">{escape(entry["status"])}</p>'
        if entry["status"] == DONE:
            link = escape(quote(Path(entry["path"]).name))
            tag = f'<img loading="lazy" src="{link}" alt="">'
            if link.endswith(".mp4"):
                tag = f'<video controls preload="metadata" src="{link}"></video>'
            shown = f'<a href="{link}">{tag}</a>'
        if entry.get("error"):
            shown += f'<p class="failed">{escape(str(entry["error"])[:500])}</p>'
        names = " + ".join(one.name for one in list_.kinds[job.kind].recipe.techniques)
        prompt = escape(without_secrets(job.prompt)[:500])
        yield (
            f"<li>{shown}{prompt}<br><small>{job.number}, seed {job.seed}"
            f"{', ' + escape(names) if names else ''}, {job.id}</small></li>\n"
        )


def _thumbnail(path: Path) -> Image.Image | None:
    """A small picture, of a clip its first frame; ``None`` if the file cannot be read."""
    try:
        with _first_picture(path) as image:
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
            return image.convert("RGB")
    except (OSError, AttnctlError):
        return None


def _first_picture(path: Path) -> Image.Image:
    if path.suffix != ".mp4":
        return Image.open(path)
    from attnctl.video import FrameRange, read_video

    return Image.fromarray(read_video(path, FrameRange(0, 1)).frames[0])
