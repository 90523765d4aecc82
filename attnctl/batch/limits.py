"""What a job may name outside of itself: models and files, inside folders that the user chose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.errors import AttnctlError
from attnctl.loading import BUNDLED, find_model
from attnctl.yaml_files import Place

FILE_PARAMETERS = frozenset({"heads"})
"""Parameters of techniques that may name a file."""

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")

Fault = tuple[Place, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """Folders from which jobs may read.

    Attributes:
        roots: The folders, with everything in them; pictures are named from the first.
        trusted: Models that the user named outside of the job file.
        may_download: Whether a hub id may be fetched from the network.
    """

    roots: tuple[Path, ...]
    trusted: frozenset[str] = frozenset()
    may_download: bool = False
    _known: dict[str, str | None] = field(default_factory=dict[str, str | None], init=False)

    @classmethod
    def around(cls, *folders: Path, **rest: Any) -> Limits:
        """Allow the given folders and the working folder."""
        roots = dict.fromkeys(folder.resolve() for folder in (*folders, Path()))
        return cls(tuple(roots), **rest)

    def faults(self, values: Mapping[str, Any]) -> list[Fault]:
        """List what a job names and may not use."""
        found: list[Fault] = []
        model = values.get("model")
        if isinstance(model, str) and (text := self._model_fault(model)):
            found.append((("model",), f"model: {text}"))
        techniques = values.get("techniques")
        for number, entry in enumerate(techniques if isinstance(techniques, list) else []):
            for parameters in _parameters(entry):
                for key in FILE_PARAMETERS & parameters.keys():
                    if isinstance(parameters[key], str):
                        text = self.file_fault(parameters[key])
                        place = ("techniques", number, str(next(iter(entry))), key)
                        found += [(place, f"{key}: {text}")] if text else []
        return found

    def file_fault(self, name: str, path: Path | None = None) -> str | None:
        """Say why a job may not read a file; ``None`` if it may.

        Args:
            name: As the job has it.
            path: Where that leads; from the working folder by default.
        """
        if _URL.match(name):
            return f"{name!r:.200} is an address; jobs read files only, and download nothing"
        outside = self._outside(str(path or name))
        if outside is None and not Path(path or name).is_file():
            return f"there is no file {name!r:.200}"
        return outside

    def _model_fault(self, name: str) -> str | None:
        if name not in self._known:
            self._known[name] = self._look_at_model(name)
        return self._known[name]

    def _look_at_model(self, name: str) -> str | None:
        if name in self.trusted:
            return None
        if _URL.match(name):
            return f"{name!r:.200} is an address; give a bundled name, a folder or a hub id"
        is_folder = name not in BUNDLED and _is_folder(name)
        if is_folder and (text := self._outside(name)):
            return text
        try:
            find_model(name)
        except (AttnctlError, ValueError, OSError) as error:
            return str(error)
        if name in BUNDLED or is_folder or self.may_download or _is_cached(name):
            return None
        return (
            f"{name!r} is not on this machine, and jobs download nothing; allow it with --download"
        )

    def _outside(self, name: str) -> str | None:
        try:
            path = Path(name).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            return f"{name!r:.200} is no path: {error}"
        if any(path.is_relative_to(root) for root in self.roots):
            return None
        shown = ", ".join(str(root) for root in self.roots)
        return f"{name!r:.200} lies outside of {shown}; allow its folder with --root"


def _parameters(entry: Any) -> list[Mapping[str, Any]]:
    """Parameters of an entry in any of its forms."""
    if not isinstance(entry, Mapping):
        return []
    return [value for value in entry.values() if isinstance(value, Mapping)]


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "model_index.json"), str)
    except (ValueError, OSError):
        return False
