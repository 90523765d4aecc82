"""Tables and JSON on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

WIDE = 10_000


def print_json(value: Any) -> None:
    """Print one JSON object."""
    print(json.dumps(value, ensure_ascii=False))  # noqa: T201


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print columns; on a terminal the last one is wrapped, in a pipe every row is one line."""
    texts = [[str(cell) for cell in row] for row in rows]
    lines = [list(head), *texts]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    indent = sum(widths) + 2 * len(widths)
    room = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else WIDE
    for line in lines:
        first = "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=False))
        wrapped = textwrap.wrap(line[-1], max(room, 24)) or [""]
        print(f"{first}  {wrapped[0]}".rstrip())  # noqa: T201
        for more in wrapped[1:]:
            print(" " * indent + more)  # noqa: T201
