"""The command line: ``attnctl``, also ``python -m attnctl``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from typing import Any

DONE, FAILED, WRONG, STOPPED = 0, 1, 2, 130
"""Exit codes: done; the work failed; the command was wrong; stopped by the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is a line, not a traceback."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(given)
    except KeyboardInterrupt:
        _say("stopped; finished pictures are kept")
        return STOPPED
    except Exception as error:
        if "--debug" in given:
            traceback.print_exc()
        from attnctl.cli.failures import explain

        code, text = explain(error)
        _say(text)
        return code


def _run(arguments: list[str]) -> int:
    import typer
    from typer.main import get_command

    from attnctl.cli.app import app

    try:
        result = get_command(app).main(arguments, prog_name="attnctl", standalone_mode=False)
    except typer.Exit as stop:
        return stop.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # that is how a wrong use of options is told
            raise
        return _explain_usage(error)
    return result if isinstance(result, int) else DONE


def _explain_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return WRONG
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "attnctl"
    _say(f"error: {error.format_message().rstrip('.')}; see `{path} --help`")
    return WRONG


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
