"""How a picture is edited: the method and its settings, checked before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

from attnctl.errors import SettingError, nearest
from attnctl.inversion import METHODS as INVERSIONS
from attnctl.settings import check_number, check_whole

BASELINES = ("flow-edit", "sdedit", "regenerate")
"""Methods without an inversion."""

METHODS = (*INVERSIONS, *BASELINES)


@dataclass(frozen=True, slots=True)
class EditSettings:
    """How to edit; ``None`` leaves a choice to the model.

    Attributes:
        method: An inversion (``"auto"``, ``"ddim"``, ``"euler"``, ``"rf-solver"``, ``"fireflow"``,
            ``"rf-inversion"``), ``"flow-edit"``, or a baseline: ``"sdedit"`` adds noise and
            samples the target prompt, ``"regenerate"`` ignores the picture.
        steps: Steps of the sampler.
        guidance: Guidance scale of the edit; ``None``: the pipeline's default.
        seed: Of every random number: noise of ``sdedit``, ``regenerate``, ``flow-edit`` and
            ``rf-inversion``.
        negative: What the edit should not show.
        replay: The source beside the edit follows its inversion exactly.
        refinements: Fixed-point iterations of each ``ddim`` or ``euler`` step of the inversion;
            ``None``: as many as an accurate inversion takes.
        inverted_with: Prompt of the inversion: ``"source"`` or ``"empty"``; ``None``: empty for
            ``rf-inversion``, else the source's.
        inversion_guidance: Guidance scale of the inversion.
        nudge: Factor on the source's latents before the inversion.
        gamma: RF-Inversion's pull towards random noise.
        consistent: RF-Inversion with times and steps that belong together.
        strength: Share of the steps that ``sdedit`` runs, in (0, 1].
        source_guidance: Guidance scale of the source in ``flow-edit``; ``None``: 0.26 of
            :attr:`guidance`, the authors' ratio.
        edited_share: Share of the steps in which ``flow-edit`` edits, in [0, 1]; ``None``: the
            authors' 24 of 28 for FLUX, 33 of 50 else.
        sampled_share: Share of the steps at the end that ``flow-edit`` samples as usual.
        averages: Noises that each step of ``flow-edit`` averages over.
    """

    method: str = "auto"
    steps: int = 50
    guidance: float | None = None
    seed: int = 0
    negative: str | None = None
    replay: bool = True
    refinements: int | None = None
    inverted_with: str | None = None
    inversion_guidance: float = 1.0
    nudge: float = 1.0
    gamma: float = 0.5
    consistent: bool = True
    strength: float = 0.6
    source_guidance: float | None = None
    edited_share: float | None = None
    sampled_share: float = 0.0
    averages: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SettingError(f"unknown method {self.method!r}; {nearest(self.method, METHODS)}")
        for name, least in (("steps", 1), ("seed", 0), ("averages", 1)):
            check_whole("edit", name, getattr(self, name), at_least=least)
        if self.refinements is not None:
            check_whole("edit", "refinements", self.refinements, at_least=0)
        for name in ("guidance", "source_guidance"):
            if getattr(self, name) is not None:
                check_number("edit", name, getattr(self, name), at_least=0)
        for name in ("sampled_share", "edited_share"):
            if getattr(self, name) is not None:
                check_number("edit", name, getattr(self, name), at_least=0, at_most=1)
        check_number("edit", "strength", self.strength, at_least=1e-3, at_most=1)
        if self.inverted_with not in (None, "source", "empty"):
            raise SettingError(
                f"edit: inverted_with={self.inverted_with!r} must be 'source' or 'empty'"
            )
        if self.refinements and self.method not in ("auto", "ddim", "euler"):
            raise SettingError(
                f"edit: refinements={self.refinements} is for the methods 'auto', 'ddim' and "
                f"'euler', not for {self.method!r}"
            )

    @property
    def inverts(self) -> bool:
        """Whether the method needs an inversion."""
        return self.method not in BASELINES


def check_prompts(source: str, target: str) -> None:
    """Refuse prompts that cannot describe an edit.

    Raises:
        SettingError: one of them is empty.
    """
    for name, text in (("source", source), ("target", target)):
        if not isinstance(text, str) or not text.strip():  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(
                f"the {name} prompt is empty; say in words what the "
                f"{'picture shows' if name == 'source' else 'edited picture should show'}"
            )
