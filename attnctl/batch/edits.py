"""Edits of given pictures as jobs: checked without a model, and carried out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attnctl.batch.limits import Fault, Limits
from attnctl.errors import AttnctlError
from attnctl.files import sha256_of
from attnctl.imaging import run_record
from attnctl.pipelines.edit_settings import (  # pyright: ignore[reportMissingImports]
    EditSettings,
    check_prompts,
)
from attnctl.pipelines.text_to_image import (  # pyright: ignore[reportMissingImports]
    OnStep,
    Picture,
)
from attnctl.recipes import Recipe

EDIT_KEYS = frozenset({"image", "source", "target", "method"})
"""Keys that only edits have."""

STEPS = 50
"""Steps of an edit that names none: inversions with fewer lose much."""


@dataclass(frozen=True, slots=True)
class EditTask:
    """What an edit has beside its recipe, whose prompt is the target.

    Attributes:
        path: The picture's file.
        sha256: Hash of that file; the path does not decide about the edit.
        source: What the picture shows.
        method: As :class:`attnctl.pipelines.edit_settings.EditSettings` has it.
    """

    path: Path
    sha256: str
    source: str
    method: str

    def to_dict(self) -> dict[str, str]:
        """What decides about the edit, as plain values."""
        return {"picture": self.sha256, "source": self.source, "method": self.method}


@dataclass(slots=True)
class EditReader:
    """Reads the keys of edits; each picture is looked at once.

    Attributes:
        limits: What jobs may read.
    """

    limits: Limits
    _known: dict[str, tuple[Path, str, str | None]] = field(
        default_factory=dict[str, "tuple[Path, str, str | None]"], init=False
    )

    def read(
        self, values: Mapping[str, Any]
    ) -> tuple[dict[str, Any], EditTask | None, list[Fault]]:
        """Split a job into the values of a recipe and its edit.

        Returns:
            The recipe's values, the edit if it is one, and what is wrong with it.
        """
        keys = EDIT_KEYS & values.keys()
        if not keys:
            return dict(values), None, []
        rest = {key: value for key, value in values.items() if key not in EDIT_KEYS}
        faults = _shape_faults(values, keys)
        if "target" in values:
            rest["prompt"] = values["target"]
        if faults:
            return rest, None, faults
        path, digest, text = self._look(values["image"])
        if text:
            return rest, None, [(("image",), f"image: {text}")]
        method = values.get("method", EditSettings().method)
        try:
            check_prompts(values["source"], rest.get("prompt", ""))
            EditSettings(method=method)
        except AttnctlError as error:
            return rest, None, [((), str(error))]
        return rest, EditTask(path, digest, values["source"], method), []

    def _look(self, name: str) -> tuple[Path, str, str | None]:
        if name not in self._known:
            self._known[name] = self._open(name)
        return self._known[name]

    def _open(self, name: str) -> tuple[Path, str, str | None]:
        from attnctl.picture_files import read_picture

        path = self.limits.roots[0] / name
        text = self.limits.file_fault(name, path)
        if text is not None:
            return path, "", text
        try:
            read_picture(path)
            return path, sha256_of(path), None
        except (AttnctlError, OSError) as error:
            return path, "", str(error)


def draw_edit(pipe: Any, recipe: Recipe, task: EditTask, *, on_step: OnStep) -> Picture:
    """Edit one picture.

    Args:
        pipe: A pipeline whose pictures can be inverted.
        recipe: Its prompt is the target.
        task: The picture and what it shows.
        on_step: Called after each evaluation of the denoiser with 1.
    """
    from attnctl.picture_files import read_picture
    from attnctl.pipelines.edit import edit  # pyright: ignore[reportMissingImports]
    from attnctl.pipelines.edit_pictures import (  # pyright: ignore[reportMissingImports]
        check_size,
        fit_picture,
        fitted_size,
    )

    picture = read_picture(task.path).image
    size = recipe.size_px or fitted_size(pipe, picture.size)
    check_size(pipe, size)
    techniques = recipe.build_techniques()
    settings = _settings(recipe, task)
    made = edit(
        pipe,
        fit_picture(picture, size),
        task.source,
        str(recipe.prompt),
        settings=settings,
        techniques=techniques,
        on_evaluation=lambda _done, _total: on_step(1),
    )
    single = recipe.changed(
        steps=settings.steps, guidance=made.settings.guidance, size=f"{size[0]}x{size[1]}"
    )
    record = _record(pipe, single, task, techniques, asdict(made.settings))
    report = None if made.report is None else made.report.to_dict()
    return Picture(made.edited, single, record, made.seconds, report=report)


def _settings(recipe: Recipe, task: EditTask) -> EditSettings:
    return EditSettings(
        method=task.method,
        steps=recipe.steps or STEPS,
        guidance=recipe.guidance,
        seed=recipe.seed or 0,
        negative=recipe.negative,
    )


def _record(
    pipe: Any, recipe: Recipe, task: EditTask, techniques: list[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    from attnctl.inversion import sampler_of

    return {
        "recipe": recipe.to_dict(),
        "prompt": recipe.prompt,
        "model": recipe.model,
        "seed": recipe.seed,
        **run_record(pipe, techniques, "auto", sampler_of(pipe)),
        "edit": {
            "source": task.source,
            "picture": {"name": task.path.name, "sha256": task.sha256},
            "settings": settings,
        },
    }


def _shape_faults(values: Mapping[str, Any], keys: frozenset[str]) -> list[Fault]:
    """Check which keys there are, and that they are texts."""
    faults: list[Fault] = [
        ((key,), f"{key}: must be a text, got {values[key]!r:.200}")
        for key in sorted(keys)
        if not isinstance(values[key], str)
    ]
    missing = [key for key in ("image", "source") if key not in values]
    faults += [((), f"an edit needs `{key}:`") for key in missing]
    if ("target" in values) == ("prompt" in values):
        faults.append(((), "an edit needs `target:`, what the edited picture should show"))
    if values.get("scheduler") is not None:
        text = "scheduler: an edit runs with the sampler of its inversion; leave it out"
        faults.append((("scheduler",), text))
    return faults
