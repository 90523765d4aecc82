"""The pictures that a job file asks for: every row checked, nothing loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.batch.edits import EditReader, EditTask
from attnctl.batch.kinds import Kind, Kinds
from attnctl.batch.limits import Limits
from attnctl.batch.problems import Problems
from attnctl.batch.rows import Header, Locate, Row, read_rows
from attnctl.batch.sweeps import expand
from attnctl.canonical import canonical_json
from attnctl.recipes import MAX_PROMPT, MAX_SEED, Recipe

MAX_JOBS = 1_000_000
"""More pictures than these are refused."""

_OWN = frozenset({"prompt", "seed", "count"})


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One picture or clip.

    Attributes:
        number: Its place, from 1.
        id: 16 hexadecimal digits that only an equal recipe shares.
        kind: Number of its kind: everything of its recipe but prompt and seed.
        prompt: What it shows.
        seed: Seed of its own generator.
        line: Line of the job file.
        edit: The picture that is edited; ``None`` where one is made.
    """

    number: int
    id: str
    kind: int
    prompt: str
    seed: int
    line: int
    edit: EditTask | None = None


@dataclass(slots=True)
class JobList:
    """Everything that is to be made, checked.

    Attributes:
        name: The job file.
        jobs: Pictures in the order of the file.
        kinds: What they have in common.
        repeats: Pictures that were asked for more than once, made once.
    """

    name: str
    jobs: list[BatchJob] = field(default_factory=list[BatchJob])
    kinds: list[Kind] = field(default_factory=list[Kind])
    repeats: int = 0

    def recipe(self, job: BatchJob) -> Recipe:
        """Recipe of one picture."""
        return self.kinds[job.kind].recipe.changed(prompt=job.prompt, seed=job.seed)


def read_jobs(
    path: str | Path,
    *,
    defaults: str | Path | None = None,
    model: str | None = None,
    limits: Limits | None = None,
) -> JobList:
    """Read and check a job file.

    Args:
        path: A YAML, JSON, JSONL or CSV file.
        defaults: A YAML file with ``defaults:`` and ``matrix:`` for all jobs.
        model: For jobs that name none.
        limits: What jobs may read; by default the folder of the file and the working folder.

    Raises:
        JobFileError: listing everything that is wrong with it, each with line and column.
    """
    path = Path(path)
    problems = Problems(str(path))
    builder = _Builder(problems, limits or Limits.around(path.parent), model)
    if defaults is not None:
        others = Problems(str(defaults))
        for row in read_rows(Path(defaults), others):
            if row.is_header:
                builder.header.take(row, others)
            elif row.values:
                others.add((row.line, 1), "only `defaults:` and `matrix:` belong here")
        others.raise_any()
    for row in read_rows(path, problems):
        builder.take(row)
    return builder.finish()


def jobs_from(
    rows: Iterable[Mapping[str, Any] | Recipe],
    *,
    defaults: Mapping[str, Any] | None = None,
    matrix: Mapping[str, list[Any]] | None = None,
    limits: Limits | None = None,
) -> JobList:
    """Check jobs that are plain values or recipes; line 1 is the first of them.

    Raises:
        JobFileError: listing everything that is wrong with them.
    """
    problems = Problems("jobs")
    builder = _Builder(problems, limits or Limits.around())
    header = {"defaults": dict(defaults or {}), "matrix": dict(matrix or {})}
    builder.header.take(Row(header, 1, lambda _place: (1, 1)), problems)
    for number, values in enumerate(rows, 1):
        plain = values.to_dict() if isinstance(values, Recipe) else dict(values)
        builder.take(Row(plain, number, lambda _place, line=number: (line, 1)))
    return builder.finish()


class _Builder:
    """Takes rows one by one and keeps what is right with them."""

    def __init__(self, problems: Problems, limits: Limits, model: str | None = None) -> None:
        self._base: dict[str, Any] = {} if model is None else {"model": model}
        self.header = Header()
        self._problems = problems
        self._list = JobList(problems.name)
        self._kinds = Kinds(limits)
        self._edits = EditReader(limits)
        self._ids: dict[str, int] = {}
        self._unseeded: dict[str, int] = {}
        self._has_rows = False

    def take(self, row: Row) -> None:
        """Check a row and keep its pictures."""
        if row.is_header:
            if self._has_rows:
                self._problems.add((row.line, 1), "defaults and matrix must stand before all jobs")
            self.header.take(row, self._problems)
            return
        self._has_rows = True
        for given, locate in expand(row, self.header, self._problems):
            values, edit, faults = self._edits.read({**self._base, **given})
            for place, text in faults:
                self._problems.add(locate(place), text)
            index = self._kind_of(values)
            if index is None:
                for place, text in self._kinds.faults(values) or [((), "cannot be used")]:
                    self._problems.add(locate(place), text)
            elif not self._problems:
                self._keep(row.line, index, values, edit, locate)
            if len(self._list.jobs) > MAX_JOBS:
                self._problems.add((row.line, 1), f"more than {MAX_JOBS:,} pictures")
                self._problems.raise_any()

    def finish(self) -> JobList:
        """Give what was read.

        Raises:
            JobFileError: listing everything that is wrong.
        """
        if not self._has_rows and not self._problems:
            self._problems.add((1, 1), "empty; a job needs at least a prompt")
        self._problems.raise_any()
        self._list.kinds = self._kinds.all
        return self._list

    def _kind_of(self, values: Mapping[str, Any]) -> int | None:
        """Number of the kind, if the row is right; a fast way for the many rows that are."""
        prompt, seed, count = values.get("prompt"), values.get("seed"), values.get("count", 1)
        is_right = (
            (_is_text(prompt) or _is_list_of_texts(prompt))
            and (seed is None or (type(seed) is int and 0 <= seed <= MAX_SEED))
            and (type(count) is int and 1 <= count <= 100_000)
        )
        index = self._kinds.find({k: v for k, v in values.items() if k not in _OWN})
        if not is_right or index is None:
            return None
        words = self._kinds.all[index].words
        if words and self._kinds.word_faults(self._kinds.all[index], values):
            return None
        return index

    def _keep(
        self,
        line: int,
        kind: int,
        values: Mapping[str, Any],
        edit: EditTask | None,
        locate: Locate,
    ) -> None:
        prompt, count, seed = values["prompt"], values.get("count", 1), values.get("seed")
        prompts: list[str] = [prompt] if isinstance(prompt, str) else prompt
        base = self._kinds.all[kind].base
        if edit is not None:
            base = {**base, "edit": edit.to_dict()}
        if seed is None:
            seed = self._choose_seed(base, prompts, count)
        if seed + len(prompts) * count - 1 > MAX_SEED:
            self._problems.add(locate(("seed",)), f"seed: {seed} is too large for so many pictures")
            return
        for number in range(len(prompts) * count):
            text, own_seed = prompts[number // count], seed + number
            id_ = _digest({**base, "prompt": text, "seed": own_seed})[:16]
            if id_ in self._ids:
                self._list.repeats += 1
                continue
            self._ids[id_] = line
            place = len(self._list.jobs) + 1
            self._list.jobs.append(BatchJob(place, id_, kind, text, own_seed, line, edit))

    def _choose_seed(self, base: Mapping[str, Any], prompts: list[str], count: int) -> int:
        """Derive a seed from what is asked, so that it does not depend on the order of rows."""
        key = _digest({**base, "prompt": prompts, "count": count})
        repeat = self._unseeded.get(key, 0)
        self._unseeded[key] = repeat + 1
        return int(_digest({"of": key, "repeat": repeat})[:8], 16)


def _is_text(value: Any) -> bool:
    if type(value) is not str or len(value) > MAX_PROMPT:
        return False
    return value.isascii() or len(value.encode("utf-8", "ignore").decode("utf-8")) == len(value)


def _is_list_of_texts(value: Any) -> bool:
    return type(value) is list and bool(value) and all(_is_text(text) for text in value)


def _digest(values: Mapping[str, Any]) -> str:
    """Name exactly these plain values, in the same form as :attr:`Recipe.id`."""
    text = canonical_json(values, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
