"""Where a technique acts: selectors over attention sites.

A selector is a list of terms that must all hold, joined by ``:`` or ``,``; alternatives are joined
by ``|``. ``"mid:self"``, ``"down:cross|up:cross"``, ``"res=16"``, ``"layers=7-9"``,
``"layers=3,heads=0+5"``, ``"path=down_blocks.1.*"``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING

from attnctl.errors import LayerNotFoundError, NoSiteError, WhereError, nearest

if TYPE_CHECKING:
    from attnctl.sites import Site

KINDS = ("self", "cross", "joint", "temporal")
STAGES = ("down", "mid", "up", "control", "double", "single", "block")
_KEYS = ("layers", "heads", "res", "level", "index", "path", "denoiser")


@dataclass(frozen=True, slots=True)
class Selection:
    """One alternative of a selector; an empty field does not restrict."""

    kind: str | None = None
    stage: str | None = None
    layers: tuple[int, ...] = ()
    index: tuple[int, ...] = ()
    level: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    grids: tuple[tuple[int, int], ...] = ()
    path: str | None = None
    denoiser: str | None = None

    def matches(self, site: "Site") -> bool:
        """Whether the site fits everything that is known before a run (not the grid)."""
        return (
            (self.kind is None or site.kind == self.kind)
            and (self.stage is None or site.stage == self.stage)
            and (not self.layers or site.layer in self.layers)
            and (not self.index or site.index in self.index)
            and (not self.level or site.level in self.level)
            and (self.path is None or fnmatchcase(site.path, self.path))
            and (self.denoiser is None or site.denoiser == self.denoiser)
        )

    def matches_grid(self, height: int, width: int) -> bool:
        """Whether image tokens laid out as ``height x width`` fit ``res=``."""
        return not self.grids or (height, width) in self.grids


@dataclass(frozen=True, slots=True)
class Where:
    """A selector over attention sites, read from a text.

    Raises:
        WhereError: the text has an unknown term or a bad number.
    """

    text: str = "all"

    def __post_init__(self) -> None:
        self.selections()

    def selections(self) -> tuple[Selection, ...]:
        """The alternatives of this selector."""
        if not isinstance(self.text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise WhereError(f"where={self.text!r} is no selector; give a text such as 'mid:self'")
        return _parse(self.text)

    @staticmethod
    def parse(value: "str | Where") -> "Where":
        """Take a selector as it is, or read it from a text."""
        return value if isinstance(value, Where) else Where(value)

    def sites(self, sites: Sequence["Site"]) -> tuple["Site", ...]:
        """Sites that match, before grids are known.

        Raises:
            LayerNotFoundError: an exact path is not in the model.
            NoSiteError: nothing matches.
            WhereError: a head index is out of range at a matching site.
        """
        chosen = tuple(s for s in sites if any(one.matches(s) for one in self.selections()))
        if not chosen:
            self._explain_nothing(sites)
        self._check_heads(chosen)
        return chosen

    def heads(self, site: "Site") -> tuple[int, ...] | None:
        """Heads selected at a site; ``None`` for all of them."""
        found: set[int] = set()
        for one in self.selections():
            if one.matches(site):
                if not one.heads:
                    return None
                found.update(one.heads)
        return tuple(sorted(found))

    def allows_grid(self, site: "Site", height: int, width: int) -> bool:
        """Whether the site is selected, now that its image tokens are ``height x width``."""
        return any(
            one.matches(site) and one.matches_grid(height, width) for one in self.selections()
        )

    @property
    def needs_grid(self) -> bool:
        """Whether the selector asks for a resolution, known only when a run starts."""
        return any(one.grids for one in self.selections())

    def _explain_nothing(self, sites: Sequence["Site"]) -> None:
        paths = [s.path for s in sites]
        for one in self.selections():
            if one.path is not None and not any(c in one.path for c in "*?["):
                raise LayerNotFoundError(
                    f'no attention layer "{one.path}" among {len(paths)}; '
                    + nearest(one.path, paths)
                )
        kinds = sorted({f"{s.stage}:{s.kind}" for s in sites})
        layers = {k: sum(s.kind == k for s in sites) for k in KINDS}
        counts = ", ".join(f"{n} {k} (layers 0-{n - 1})" for k, n in layers.items() if n)
        raise NoSiteError(
            f"where={self.text!r} matches no attention site; this model has {counts or 'none'}"
            f"{'; places: ' + ', '.join(kinds) if kinds else ''}"
        )

    def _check_heads(self, chosen: Sequence["Site"]) -> None:
        for site in chosen:
            for head in self.heads(site) or ():
                if site.heads and head >= site.heads:
                    raise WhereError(
                        f"where={self.text!r} asks for head {head} of {site.path}, "
                        f"which has {site.heads} heads (0-{site.heads - 1})"
                    )

    def __str__(self) -> str:
        return self.text


@lru_cache(maxsize=256)
def _parse(text: str) -> tuple[Selection, ...]:
    return tuple(_parse_selection(part, text) for part in text.split("|"))


def _parse_selection(text: str, whole: str) -> Selection:
    fields: dict[str, object] = {}
    for term in re.split(r"[:,]", text):
        term = term.strip()
        key, has_value, value = term.partition("=")
        key = key.strip()
        if has_value and key in _KEYS:
            fields[_field(key)] = _parse_value(key, value.strip(), whole)
        elif term in KINDS:
            fields["kind"] = term
        elif term in STAGES:
            fields["stage"] = term
        elif term and "." in term:
            fields["path"] = term
        elif term != "all":
            allowed = ["all", *KINDS, *STAGES, *(f"{k}=" for k in _KEYS)]
            raise WhereError(f"unknown term {term!r} in where={whole!r}; {nearest(term, allowed)}")
    return Selection(**fields)  # pyright: ignore[reportArgumentType]


def _field(key: str) -> str:
    return "grids" if key == "res" else key


def _parse_value(key: str, value: str, whole: str) -> object:
    if key in ("path", "denoiser"):
        return value
    try:
        if key == "res":
            return tuple(_parse_grid(part) for part in value.split("+"))
        return _parse_numbers(value)
    except ValueError:
        example = {"res": "res=16 or res=16x24"}.get(key, f"{key}=3, {key}=7-9 or {key}=0+5")
        raise WhereError(f"cannot read {key}={value!r} in where={whole!r}; use {example}") from None


def _parse_grid(text: str) -> tuple[int, int]:
    height, has_width, width = text.partition("x")
    return int(height), int(width if has_width else height)


def _parse_numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split("+"):
        first, is_range, last = part.partition("-")
        numbers.extend(range(int(first), int(last if is_range else first) + 1))
    if not numbers:
        raise ValueError(text)
    return tuple(numbers)
