"""Scores on disk that survive a killed process: one journal a process, read by all of them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.bench.journal import json_line, key_of, whole_lines
from attnctl.errors import AttnctlError, SettingError
from attnctl.files import write_text
from attnctl.headhunter.pool import Candidate

RUN_FILE = "search.json"

Key = tuple[int, int, int, int]


class Scores:
    """What is known of every (round, layer, head, prompt).

    Args:
        folder: Where the journals lie; all processes must see the same folder.
        run: Plain values that decide about every score.
        process: Number of this process; it writes a journal of its own.
    """

    def __init__(self, folder: Path, run: Mapping[str, Any], process: int = 0) -> None:
        self._folder, self._run = folder, dict(run)
        self._path = folder / f"scores-{process}.jsonl"
        self._head = {"search": key_of(run)}
        self._known: dict[Key, float] = {}

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that holds another search, or one that is not asked to go on.

        Raises:
            SettingError: saying what differs.
        """
        file, folder = self._folder / RUN_FILE, str(self._folder)
        if not file.exists():
            if any(self._folder.glob("scores-*.jsonl")):
                raise SettingError(
                    f"{folder!r} holds scores, but no {RUN_FILE} that says of which search; give "
                    "another folder with --out"
                )
            return
        changed = differences(json.loads(file.read_text("utf-8")), self._run)
        if changed:
            raise SettingError(
                f"{folder!r} holds another search: {'; '.join(changed)}. Give the same settings, "
                "or another folder with --out"
            )
        if not resume:
            raise SettingError(
                f"{folder!r} holds this search already; go on with it with --resume, or give "
                "another folder with --out"
            )

    def save_run(self) -> None:
        """Write down what is searched; one process does it for all."""
        write_text(self._folder / RUN_FILE, json.dumps(self._run, indent=1, ensure_ascii=False))

    def open(self) -> None:
        """Start this process's journal or go on with it, and learn what all of them know."""
        lines = whole_lines(self._path) if self._path.exists() else []
        mine = self._entries(self._path, lines)
        write_text(self._path, "".join(map(json_line, [self._head, *mine])))
        self.read_all()

    def read_all(self) -> None:
        """Learn what the other processes have written; a line that is cut off does not count."""
        for path in sorted(self._folder.glob("scores-*.jsonl")):
            for entry in self._entries(path, whole_lines(path)):
                key = (entry["round"], entry["layer"], entry["head"], entry["prompt"])
                self._known[key] = entry["score"]

    def of(self, round_: int, candidate: Candidate, prompts: Sequence[int]) -> list[float] | None:
        """Scores of a candidate for some prompts; ``None`` if any is missing."""
        found = [self._known.get(_key(round_, candidate, prompt)) for prompt in prompts]
        return None if None in found else [one for one in found if one is not None]

    def add(
        self, round_: int, candidate: Candidate, prompts: Sequence[int], scores: Sequence[float]
    ) -> None:
        """Note scores; they are on the disk when this returns."""
        text = ""
        for prompt, score in zip(prompts, scores, strict=True):
            key = _key(round_, candidate, prompt)
            names = ("round", "layer", "head", "prompt")
            text += json_line({**dict(zip(names, key, strict=True)), "score": score})
            self._known[key] = score
        with open(self._path, "ab") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())

    def whole_round(
        self, round_: int, candidates: Sequence[Candidate], prompts: Sequence[int]
    ) -> dict[Candidate, list[float]]:
        """Scores of all candidates of a round, from all processes.

        Raises:
            AttnctlError: some are missing.
        """
        self.read_all()
        found = {candidate: self.of(round_, candidate, prompts) for candidate in candidates}
        missing = [candidate for candidate, scores in found.items() if scores is None]
        if missing:
            raise AttnctlError(
                f"{len(missing)} of {len(candidates)} heads have no score in {str(self._folder)!r} "
                f"after round {round_}, {missing[0]} for one; all processes must share that folder"
            )
        return {candidate: scores for candidate, scores in found.items() if scores is not None}

    def _entries(self, path: Path, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not lines:
            return []
        if lines[0] != self._head:
            raise SettingError(f"{str(path)!r} belongs to another search; give another --out")
        return list(lines[1:])


def differences(before: Mapping[str, Any], now: Mapping[str, Any], name: str = "") -> list[str]:
    """Say which values differ, such as ``settings.scale 3.0 then, 4.0 now``."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        a, b, path = before.get(key), now.get(key), f"{name}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{path}.")  # pyright: ignore[reportUnknownArgumentType]
        elif a != b:
            is_short = max(len(repr(a)), len(repr(b))) <= 60
            found.append(f"{path} {a!r} then, {b!r} now" if is_short else f"other {path}")
    return found


def _key(round_: int, candidate: Candidate, prompt: int) -> Key:
    return (round_, candidate.layer, candidate.head, prompt)
