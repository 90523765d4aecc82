"""What ran: step, site, technique, kernel, calls and time."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from attnctl.calls import PassKind


@dataclass(slots=True)
class Entry:
    """One site at one step in one kind of pass."""

    step: int
    pass_kind: PassKind
    site: str
    techniques: tuple[str, ...]
    kernel: str
    calls: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class LossEntry:
    """One technique's gradient guidance at one step."""

    step: int
    technique: str
    evaluations: int
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """How one technique's added rows were computed at one step.

    ``first`` is the block from which on they were computed, the outputs of those before it being
    replayed from the rows that they shadow; ``None`` if every block computed them.
    """

    step: int
    technique: str
    first: str | None


@dataclass(slots=True)
class CacheUse:
    """What a technique kept at attention sites between steps.

    Attributes:
        peak_entries: Most entries at once.
        peak_bytes: Most memory at once.
        device: Where they were kept.
        hits: How often an entry was there.
        misses: How often none was, or one of another form.
    """

    peak_entries: int = 0
    peak_bytes: int = 0
    device: str = ""
    hits: int = 0
    misses: int = 0

    def count(self, *, is_hit: bool) -> None:
        """Note one question."""
        self.hits += is_hit
        self.misses += not is_hit

    def measure(self, entries: int, size: int, device: str) -> None:
        """Note what is kept now, in entries and bytes."""
        self.peak_entries = max(self.peak_entries, entries)
        self.peak_bytes = max(self.peak_bytes, size)
        self.device = device


@dataclass(slots=True)
class Report:
    """What the techniques of a session did in its latest run.

    Attributes:
        settings: Each technique's settings, in the order of the chain.
        total: Solver steps of the run.
        entries: Controlled attention calls; idle sites do not appear.
        losses: Gradient guidance, one entry a step and technique.
        matched: Attention sites and hooked modules that each technique selects in this run.
        added: Added rows, one entry a step and technique.
        caches: What techniques kept at sites between steps, by name.
        notes: What techniques tell of their work, once each.
        warnings: What a user should know, once each.
    """

    settings: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    total: int | None = None
    entries: list[Entry] = field(default_factory=list[Entry])
    losses: list[LossEntry] = field(default_factory=list[LossEntry])
    matched: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    added: list[AddedEntry] = field(default_factory=list[AddedEntry])
    caches: dict[str, CacheUse] = field(default_factory=dict[str, CacheUse])
    notes: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])
    _index: dict[tuple[Any, ...], Entry] = field(default_factory=dict[tuple[Any, ...], Entry])

    def record(
        self,
        step: int,
        pass_kind: PassKind,
        site: str,
        techniques: tuple[str, ...],
        kernel: str,
        seconds: float,
    ) -> None:
        """Add one controlled call."""
        key = (step, pass_kind, site, techniques, kernel)
        entry = self._index.get(key)
        if entry is None:
            entry = self._index[key] = Entry(step, pass_kind, site, techniques, kernel)
            self.entries.append(entry)
        entry.calls += 1
        entry.seconds += seconds

    def record_added(self, step: int, technique: str, first: str | None) -> None:
        """Note how a technique's added rows are computed at a step."""
        entry = AddedEntry(step, technique, first)
        if entry not in self.added[-8:]:
            self.added.append(entry)

    def warn(self, text: str) -> None:
        """Note something once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def note(self, text: str) -> None:
        """Tell something once."""
        if text not in self.notes:
            self.notes.append(text)

    def cache_use(self, technique: str) -> CacheUse:
        """What a technique keeps at sites, to be counted."""
        return self.caches.setdefault(technique, CacheUse())

    def active_steps(self, technique: str) -> tuple[int, ...]:
        """Steps at which a technique acted."""
        acted = {e.step for e in self.entries if technique in e.techniques}
        return tuple(sorted(acted | {e.step for e in self.losses if e.technique == technique}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for metadata and ``--json``."""
        return {
            "settings": self.settings,
            "total_steps": self.total,
            "entries": [asdict(e) for e in self.entries],
            "losses": [asdict(e) for e in self.losses],
            "matched": {name: list(paths) for name, paths in self.matched.items()},
            "added_rows": [asdict(e) for e in self.added],
            "caches": {name: asdict(use) for name, use in self.caches.items()},
            "notes": self.notes,
            "warnings": self.warnings,
        }

    def table(self) -> str:
        """One line a technique: steps, sites, kernels, calls, seconds; then its added rows."""
        rows = [("technique", "steps", "sites", "kernel", "calls", "seconds")]
        rows += [self._row(name) for name in self.settings]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
        lines = [line.rstrip() for line in lines] + self._added_lines() + self._cache_lines()
        lines += self.notes
        return "\n".join(lines + [f"! {w}" for w in self.warnings])

    def _added_lines(self) -> list[str]:
        """How added rows were computed, one line a technique and way."""
        ways: dict[tuple[str, str | None], list[int]] = {}
        for entry in self.added:
            ways.setdefault((entry.technique, entry.first), []).append(entry.step)
        return [
            f"added rows of {name}, steps {_ranges(tuple(sorted(set(steps))))}: "
            + ("in every block" if first is None else f"from {first} on, replayed before it")
            for (name, first), steps in ways.items()
        ]

    def _cache_lines(self) -> list[str]:
        return [
            f"cache of {name}: at most {use.peak_entries} entries, "
            f"{use.peak_bytes / 2**20:.2f} MiB on {use.device or 'no device'}; "
            f"{use.hits} hits, {use.misses} misses"
            for name, use in self.caches.items()
        ]

    def _row(self, name: str) -> tuple[str, ...]:
        mine = [e for e in self.entries if name in e.techniques]
        steps = self.active_steps(name)
        return (
            name,
            _ranges(steps) + (f" of {self.total}" if self.total else ""),
            str(len({e.site for e in mine})),
            "+".join(sorted({k for e in mine for k in e.kernel.split("+")})) or "-",
            str(sum(e.calls for e in mine)),
            f"{sum(e.seconds for e in mine):.3f}",
        )

    def __str__(self) -> str:
        return self.table()


def _ranges(steps: tuple[int, ...]) -> str:
    """Write ``(0, 1, 2, 5)`` as ``0-2,5``."""
    if not steps:
        return "never"
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], step]
        else:
            parts.append([step, step])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def settings_of(techniques: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of techniques by name, in their order."""
    return {name: technique.settings() for name, technique in techniques.items()}
