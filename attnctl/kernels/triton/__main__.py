"""Print what every Triton kernel takes, compiled for Hopper: memory, registers, instructions."""

import json
import sys
from dataclasses import asdict

from attnctl.kernels.triton.compiled import TARGETS, compile_all


def main() -> None:
    """Compile and print a line a variant; ``--json`` prints one JSON array at the end."""
    as_json = "--json" in sys.argv[1:]
    rows: list[dict[str, object]] = []
    for figures in compile_all():
        rows.append(asdict(figures))
        if not as_json:
            share = figures.shared_bytes / TARGETS[90]
            sys.stdout.write(
                f"{figures.name:<55} shared {figures.shared_bytes / 1024:6.1f} KiB ({share:4.0%})  "
                f"registers {figures.registers:3}  spilled {figures.spilled_bytes:4} B  "
                f"warps {figures.warps}  stages {figures.stages}  "
                f"copies ahead {figures.copies_ahead}  "
                f"instructions a block {', '.join(map(str, figures.instructions))}\n"
            )
            sys.stdout.flush()
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
