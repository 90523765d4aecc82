"""Say in one or two lines what went wrong, and whether the command or the work is at fault."""

from __future__ import annotations

from attnctl.cli import FAILED, WRONG
from attnctl.errors import (
    AlreadyAttachedError,
    AttnctlError,
    CompiledModelError,
    ConflictError,
    LayerNotFoundError,
    NoSiteError,
    SettingError,
    UnsupportedModelError,
)

_USER_MISTAKES = (
    SettingError,
    LayerNotFoundError,
    NoSiteError,
    ConflictError,
    UnsupportedModelError,
    CompiledModelError,
    AlreadyAttachedError,
)
_HINT = "run again with --debug for the traceback"


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and what to print."""
    if isinstance(error, _USER_MISTAKES):
        return WRONG, f"error: {error}"
    if isinstance(error, AttnctlError):
        return FAILED, f"error: {error}"
    if isinstance(error, OSError) and error.filename is not None:
        return FAILED, f"error: {error.strerror or error}: {error.filename!r}"
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return FAILED, (
            "error: out of memory; use a smaller --batch-size or --size, or --offload model"
        )
    first_line = next(iter(str(error).splitlines()), "")
    return FAILED, f"error: {type(error).__name__}: {first_line}; {_HINT}"
