"""Settings of a search for heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnctl.errors import SettingError
from attnctl.heads import HeadSet
from attnctl.recipes import Recipe
from attnctl.settings import check_number

MOST_ROUNDS = 10_000


@dataclass(frozen=True, slots=True)
class HuntSettings:
    """How heads are searched; the defaults are the reference's for general quality.

    Attributes:
        model: Bundled name, folder or hub id, as written into the head set.
        rounds: Times that every head left is tried beside those that were chosen before.
        per_round: Heads that each round chooses.
        layers: Numbers of the layers to search, such as ``7-10`` or ``0+3+5-7``; empty: all.
        scale: Weight of the guidance.
        strength: How far heads are pulled, in (0, 1]; 1 makes effects visible, use less later.
        target: Map that they are pulled to; see :class:`~attnctl.SoftPAG`.
        form: Form of joint attention; see :class:`~attnctl.SoftPAG`.
        steps: Denoising steps.
        guidance: Classifier-free guidance; ``None``: off, or the pipeline's own default where
            guidance is distilled into the model.
        size: ``WxH`` in pixels; ``None``: the pipeline's.
        batch_size: Pictures made together; part of what decides about the last bits.

    Raises:
        SettingError: a value lies outside its range.
    """

    model: str = "shapes"
    rounds: int = 1
    per_round: int = 24
    layers: str = ""
    scale: float = 3.0
    strength: float = 1.0
    target: str = "identity"
    form: str = "joint"
    steps: int = 20
    guidance: float | None = None
    size: str | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        for name in ("rounds", "per_round", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or not 1 <= value <= MOST_ROUNDS:
                shown = name.replace("_", "-")
                raise SettingError(f"--{shown} {value!r} must lie between 1 and {MOST_ROUNDS}")
        for name in ("scale", "strength"):
            check_number("headhunter", name, getattr(self, name), at_least=0)
            if getattr(self, name) == 0:
                raise SettingError(f"headhunter: {name}=0 makes every head the same; give more")
        self.recipe("a prompt", HeadSet(heads=()))

    def recipe(self, prompt: str, chosen: HeadSet) -> Recipe:
        """What draws a picture with the chosen heads weakened.

        Raises:
            RecipeError: a setting cannot be used.
        """
        steering: dict[str, Any] = {
            "heads": chosen.to_dict(),
            "scale": self.scale,
            "strength": self.strength,
            "target": self.target,
            "form": self.form,
        }
        values = {
            "model": self.model,
            "prompt": prompt,
            "seed": 0,
            "steps": self.steps,
            "guidance": self.guidance,
            "size": self.size,
            "techniques": [{"soft-pag": steering}],
        }
        return Recipe.from_dict({k: v for k, v in values.items() if v is not None}, name="")
