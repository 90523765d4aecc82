"""What the prediction phase of a technique receives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnctl.engine.roles import Rows, Step
from attnctl.errors import AttnctlError, UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Guidance:
    """How the pipeline joins its guidance branches in the step that is open.

    Attributes:
        scale: Weight ``s`` of ``u + s (c - u)``; ``None`` if it is unknown or differs by frame.
        image_scale: Weight of the picture, in pipelines with a third branch for it.
        rescale: The pipeline's ``guidance_rescale``; 0 where it has none.
        is_on: Whether the pipeline guides at all; ``None`` if that is unknown.
    """

    scale: float | None = None
    image_scale: float | None = None
    rescale: float = 0.0
    is_on: bool | None = None

    def known_scale(self, user: str) -> float:
        """The scale, for ``user``, which cannot do without it.

        Raises:
            UnsupportedModelError: it is not known.
        """
        if self.scale is None:
            raise UnsupportedModelError(
                f"{user} needs the guidance scale of this step, which cannot be seen: the denoiser "
                "runs outside a call of its pipeline, or the scale changes within a step or from "
                "frame to frame. Attach to a pipeline and call that (CogVideoX: "
                "use_dynamic_cfg=False)"
            )
        return self.scale


@dataclass(slots=True)
class PredictionCall:
    """The denoiser's prediction after a forward, added rows still there.

    ``latents`` are this call's unscaled latents, one per item. ``strength``, ``state`` and
    ``owner`` are those of the technique whose method runs. Whatever the order of the techniques,
    the guidance formula comes first (the pipeline's, or the one of :meth:`own`), then the terms of
    :meth:`add`, then the rescaling.

    Attributes:
        guidance: How the pipeline joins its branches.
        rescale: How far the standard deviation of the guided prediction is pulled back to that of
            the conditional one, in [0, 1]; the pipeline's own amount, a technique may raise it.
        delta: Sum of the terms that were added so far, ``(items, ...)``.
        combined: What :meth:`own` was given.
        may_own: Whether the technique whose method runs may call :meth:`own`.
    """

    step: Step
    rows: Rows
    prediction: Tensor
    latents: Tensor
    strength: float = 1.0
    state: Any = None
    owner: str = ""
    guidance: Guidance = Guidance()
    rescale: float = 0.0
    delta: Tensor | None = None
    combined: Tensor | None = None
    may_own: bool = False

    def get(self, branch: str, kind: str = "main") -> Tensor:
        """Prediction of the rows of one branch and kind, ordered by item: ``(items, ...)``.

        Terms that techniques added are not in it.
        """
        return self.prediction[self._at(branch, kind)]

    def has(self, branch: str, kind: str = "main") -> bool:
        """Whether this forward holds such rows."""
        return any(r.branch == branch and r.fits(self.owner, kind) for r in self.rows)

    def add(self, delta: Tensor) -> None:
        """Add ``(items, ...)`` to the guided prediction.

        It goes to every main row of each item: a guidance formula ``u + s (c - u)`` passes such a
        term on unchanged. Where the pipeline calls once a branch, the same term is added to the
        later branches of the step.
        """
        self.delta = delta if self.delta is None else self.delta + delta

    def own(self, combined: Tensor) -> None:
        """Replace the pipeline's guidance formula by a prediction ``(items, ...)``.

        Only a technique that has the claim ``guidance`` may do so; its prediction phase runs where
        both branches are there, so that ``get("cond")`` and ``get("uncond")`` work. In a window
        with a ramp the result is blended with the pipeline's own formula.

        Raises:
            AttnctlError: the technique does not have the claim.
        """
        if not self.may_own:
            raise AttnctlError(
                f"{self.owner or 'a technique'} replaces the guidance formula without saying so; "
                "add 'guidance' to its claims"
            )
        self.combined = combined

    @property
    def guidance_scale(self) -> float:
        """The pipeline's guidance scale in this step.

        Raises:
            UnsupportedModelError: it is not known.
        """
        return self.guidance.known_scale(self.owner)

    def map(self, affine: Callable[[Tensor], Tensor]) -> None:
        """Apply the same affine map to the main rows of every branch."""
        for branch in dict.fromkeys(r.branch for r in self.rows):
            if self.has(branch):
                self.set(branch, affine(self.get(branch)))

    def set(self, branch: str, value: Tensor) -> None:
        """Replace the main rows of one branch."""
        self.prediction = self.prediction.index_copy(
            0, self._at(branch, "main"), value.to(self.prediction)
        )

    def main(self) -> Tensor:
        """Prediction of the pipeline's own rows."""
        return self.prediction[: sum(not row.is_added for row in self.rows)]

    def spread(self, values: Tensor) -> Tensor:
        """Give each of the pipeline's own rows the value of its item, in its dtype."""
        items = [row.item for row in self.rows if not row.is_added]
        return values[torch.tensor(items, device=values.device)].to(self.prediction)

    def _at(self, branch: str, kind: str) -> Tensor:
        fits = [r.branch == branch and r.fits(self.owner, kind) for r in self.rows]
        chosen = [i for i, is_chosen in enumerate(fits) if is_chosen]
        if not chosen:
            raise KeyError(f"this forward has no {kind!r} rows of branch {branch!r}")
        return torch.tensor(chosen, device=self.prediction.device)
