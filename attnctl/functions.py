"""Functions that a person names: ``package.module:function``."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnctl.errors import SettingError, nearest


def name_of_function(given: str | Callable[..., Any]) -> str:
    """Name a function in records; a name stays as it is."""
    if isinstance(given, str):
        return given
    name = getattr(given, "__qualname__", type(given).__qualname__)
    return f"{getattr(given, '__module__', '')}:{name}"


def import_function(option: str, module: str, function: str) -> Callable[..., Any]:
    """Import ``package.module:function``; the working folder counts as installed.

    Args:
        option: What a person gave it with, for messages.
        module: Name of the module.
        function: Name of a function, or of anything that can be called.

    Raises:
        SettingError: there is no such module or function.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        where = "" if Path(module).name == module else "; write package.module:function"
        raise SettingError(f"{option} {module}:{function}: {error}{where}") from error
    finally:
        sys.path.remove(here)
    named: Any = getattr(found, function, None)
    if not callable(named):
        names = [name for name in vars(found) if callable(getattr(found, name))]
        raise SettingError(
            f"{option} {module}:{function}: no such function; {nearest(function, names)}"
        )
    return named
