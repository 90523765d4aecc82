"""Remarks to whoever runs a command: on stderr, so that stdout has results alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def remark(texts: Sequence[str], quiet: bool) -> None:
    """Write remarks to stderr; empty ones are left out."""
    for text in texts:
        if text and not quiet:
            print(text, file=sys.stderr)  # noqa: T201
