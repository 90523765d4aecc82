"""What became of every job: one line each, appended by each process, merged at the end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from attnctl.batch.jobs import BatchJob
from attnctl.files import new_file
from attnctl.imaging import without_secrets

MERGED = "manifest.jsonl"
DONE, FAILED, ABSENT = "done", "failed", "absent"

Entry = dict[str, Any]


def rank_file(out: Path, rank: int) -> Path:
    """The manifest that one process appends to."""
    return out / f"manifest.rank{rank}.jsonl"


class Manifest:
    """The manifest of one process; every line is on the disk when :meth:`add` returns.

    Args:
        out: Folder of the batch.
        rank: Number of the process.
    """

    def __init__(self, out: Path, rank: int) -> None:
        self.path = rank_file(out, rank)

    def open(self) -> None:
        """Go on with the file; a last line that a kill has cut off is dropped."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)

    def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Append one line for each entry."""
        text = "".join(map(_line, entries))
        with open(self.path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def read_entries(out: Path) -> tuple[dict[str, Entry], list[Entry]]:
    """Read what all processes of all runs have noted.

    Returns:
        The entry of each job by id, a finished one before a failed one; and a record of each run.
    """
    entries: dict[str, Entry] = {}
    runs: list[Entry] = []
    for path in [out / MERGED, *sorted(out.glob("manifest.rank*.jsonl"))]:
        for entry in _lines(path):
            if "run" in entry:
                runs.append(entry["run"])
            elif _outweighs(entry, entries.get(str(entry.get("id")))):
                entries[str(entry["id"])] = entry
    return entries, runs


def is_finished(out: Path, entry: Entry | None) -> bool:
    """Whether a job is done and its file is there, byte for byte."""
    if entry is None or entry.get("status") != DONE:
        return False
    path = out / Path(str(entry.get("path"))).name
    return path.is_file() and digest_of(path) == entry.get("sha256")


def merge(out: Path, jobs: Iterable[BatchJob]) -> dict[str, int]:
    """Write the one manifest: a line a job in the order of the file, then jobs of other files.

    A process whose manifest is missing is no error: its jobs are noted as absent.

    Returns:
        How many of ``jobs`` are done, failed and absent.
    """
    entries, _ = read_entries(out)
    counts = {DONE: 0, FAILED: 0, ABSENT: 0}
    listed: list[Entry] = []
    for job in jobs:
        entry = entries.pop(job.id, None) or {"id": job.id, "status": ABSENT}
        entry |= {"number": job.number, "line": job.line, "prompt": job.prompt, "seed": job.seed}
        counts[entry["status"]] += 1
        listed.append(entry)
    listed += [entry for entry in entries.values() if entry.get("status") == DONE]
    with new_file(out / MERGED) as file:
        for entry in listed:
            file.write(_line(entry).encode("utf-8"))
    return counts


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(without_secrets(entry), ensure_ascii=False, allow_nan=False) + "\n"


def _outweighs(entry: Entry, known: Entry | None) -> bool:
    if entry.get("status") not in (DONE, FAILED) or "id" not in entry:
        return False
    return known is None or entry["status"] == DONE or known["status"] == FAILED


def _lines(path: Path) -> Iterator[Entry]:
    """Read the lines that are whole."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        for raw in file:
            try:
                value = json.loads(raw)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value
