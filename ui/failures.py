"""What a visitor is told when something fails: enough to mend it, nothing of the machine."""

from __future__ import annotations

from attnctl.errors import AttnctlError

LONGEST = 2000


def explain(error: BaseException) -> str:
    """Say in a line or two what went wrong; plain text, to be escaped by whoever shows it."""
    if isinstance(error, AttnctlError):
        return str(error)[:LONGEST]
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return "out of memory; take a smaller size or fewer techniques"
    if isinstance(error, OSError):
        return f"the picture could not be saved: {error.strerror or type(error).__name__}"
    return f"an internal error ({type(error).__name__}); the server's log tells more"
