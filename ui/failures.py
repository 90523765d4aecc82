"""What a visitor is told when something fails: enough to mend it, nothing of the machine."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from attnctl.errors import AttnctlError

LONGEST = 2000


def explain(error: BaseException) -> str:
    """Say in a line or two what went wrong; plain text, to be escaped by whoever shows it."""
    if isinstance(error, AttnctlError):
        return str(error)[:LONGEST]
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return "out of memory; take a smaller size or fewer techniques"
    if isinstance(error, OSError):
        return f"the result could not be saved: {error.strerror or type(error).__name__}"
    return f"an internal error ({type(error).__name__}); the server's log tells more"


@contextmanager
def naming(file: Path) -> Generator[None]:
    """Let errors call a dropped file by its own name: its folder is no business of visitors.

    Raises:
        AttnctlError: as it came, but for the folder.
    """
    try:
        yield
    except AttnctlError as error:
        text = str(error).replace(f"{file.parent}{os.sep}", "")
        raise type(error)(text) from None
