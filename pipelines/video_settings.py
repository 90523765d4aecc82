"""How a clip is edited, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from attnctl.errors import FlowError
from attnctl.flow import find_provider
from attnctl.settings import check_number, check_whole

from .edit_settings import check_prompts

NO_FLOW = "none"


@dataclass(frozen=True, slots=True)
class VideoEditSettings:
    """How to edit a clip with a picture model.

    Attributes:
        source: What the clip shows.
        target: What the edited clip should show.
        steps: Steps of the sampler, and of the inversion.
        guidance: Guidance scale of the edit; ``None``: the pipeline's default.
        negative: What the edit should not show.
        chunk: Frames that are edited together; what memory grows with.
        size: Working width and height in pixels; ``None``: the clip's form at the model's size.
        flow: Provider of the motion, a file that ``attnctl.flow.read_flow`` takes, or ``none``.
        refinements: Fixed-point iterations of each step of the inversion; each costs an evaluation.
        inject: Techniques that can take over features of the inversion (``flatten``,
            ``word-swap``) do so until this fraction of the run, those with an ``inject_until`` of
            their own until that; 0: none does.
    """

    source: str
    target: str
    steps: int = 50
    guidance: float | None = None
    negative: str | None = None
    chunk: int = 16
    size: tuple[int, int] | None = None
    flow: str = "dis"
    inject: float = 0.8
    refinements: int = 0

    def __post_init__(self) -> None:
        check_prompts(self.source, self.target)
        for name, least in (("steps", 1), ("chunk", 1), ("refinements", 0)):
            check_whole("video edit", name, getattr(self, name), at_least=least)
        if self.guidance is not None:
            check_number("video edit", "guidance", self.guidance, at_least=0)
        check_number("video edit", "inject", self.inject, at_least=0, at_most=1)
        if self.flow != NO_FLOW and not _looks_like_file(self.flow):
            find_provider(self.flow)

    @property
    def evaluations(self) -> int:
        """Evaluations of the denoiser for each frame: inversion and edit."""
        return self.steps * (2 + self.refinements)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _looks_like_file(text: str) -> bool:
    from pathlib import Path

    if Path(text).suffix.lower() in (".npz", ".flo") or Path(text).is_dir():
        if not Path(text).exists():
            raise FlowError(f"there is no flow file {text!r}")
        return True
    return False
