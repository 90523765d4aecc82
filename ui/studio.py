"""What the tabs share: settings, the queue, where pictures go, and recipes to start from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from attnctl.recipes import Recipe

from .engine import Engine
from .outputs import Outputs
from .presets import load_presets
from .settings import StudioSettings


@dataclass(frozen=True, slots=True)
class Studio:
    """The machinery behind one page; it holds no state of any visitor."""

    settings: StudioSettings
    engine: Engine
    outputs: Outputs
    presets: dict[str, Recipe]

    @classmethod
    def open(cls, settings: StudioSettings, handed_out: Path) -> Studio:
        """Check the presets, make the folder and start the queue.

        Args:
            settings: How the studio runs.
            handed_out: Folder for the copies that browsers are given.

        Raises:
            RecipeError: a preset is no recipe.
            OSError: the folder cannot be made.
        """
        presets = load_presets(settings.models, settings.presets)
        settings.out.mkdir(parents=True, exist_ok=True)
        return cls(settings, Engine(settings), Outputs(settings.out, handed_out), presets)

    def close(self) -> None:
        """Stop all jobs."""
        self.engine.close()
