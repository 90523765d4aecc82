"""The base class of every technique.

A technique is frozen settings. It overrides the phases that it uses; what it overrides is what it
needs. The order of the methods below is the order of events in a denoising step.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from attnctl.blocks import ModelParts
from attnctl.calls import (
    AttentionCall,
    InputsCall,
    LatentsCall,
    Layout,
    Move,
    Needs,
    PredictionCall,
    Read,
    RunStart,
    Step,
)
from attnctl.engine.needs import ModuleHook
from attnctl.errors import UnknownParameterError, nearest
from attnctl.schedule import Schedule
from attnctl.sites import Site
from attnctl.where import Where

CLAIMS = frozenset({"kernel", "kv", "query", "guidance", "overwrite", "optimiser"})


@dataclass(frozen=True)
class Technique:
    """Settings of one technique; the base class does nothing.

    Attributes:
        name: Kebab-case name for the command line, recipes and the UI.
        claims: What it needs for itself alone at its sites (``kernel``, ``kv``, ``query``) or at
            its steps (``guidance``, ``overwrite``, ``optimiser``).
        reference: Paper or code that it follows.
        families: Model families that it works on, in words.
        edits_rows: Kind of the added rows that its edits of attention and modules touch alone;
            ``None``: all rows.
        can_repeat: May be attached several times, with different settings; reports then call the
            second one ``name#2``.
        gives_lse: A kernel owner that can tell the log-sum-exp of the map it used, for columns.
        no_settings: Fields that hold objects such as latents, which no plain values tell.
        has_dense_gradients: A kernel owner that runs dense, differentiable attention in gradient
            passes, so that losses may read where it acts.
    """

    name: ClassVar[str] = ""
    claims: ClassVar[frozenset[str]] = frozenset()
    reference: ClassVar[str] = ""
    gives_lse: ClassVar[bool] = False
    has_dense_gradients: ClassVar[bool] = False
    edits_rows: ClassVar[str | None] = None
    can_repeat: ClassVar[bool] = False
    no_settings: ClassVar[frozenset[str]] = frozenset()
    families: ClassVar[str] = "every family"

    steps: Schedule = field(default=Schedule.always(), kw_only=True)
    where: Where = field(default=Where("all"), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", Schedule.parse(self.steps))
        object.__setattr__(self, "where", Where.parse(self.where))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Technique":
        """Build from plain values, as they come from a recipe, a command line or a form.

        Raises:
            UnknownParameterError: a key is no parameter of this technique.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                raise UnknownParameterError(
                    f"{cls.name} has no parameter {key!r}; {nearest(key, known)}"
                )
        return cls(**settings)

    def settings(self) -> dict[str, Any]:
        """Plain values that build this technique again, without :attr:`no_settings`."""
        names = [f.name for f in dataclasses.fields(self) if f.name not in self.no_settings]
        return {name: _plain(getattr(self, name)) for name in names}

    def inlined(self) -> dict[str, Any]:
        """Settings that may have come from a file, as plain values: a recipe keeps these."""
        return {}

    def select(self, sites: Sequence[Site], model: str) -> Where:
        """Choose the selector for a model: :attr:`where`, unless settings name layers otherwise.

        Args:
            sites: Every attention site of the model.
            model: Name that it was loaded by; empty if that is not known.

        Raises:
            AttnctlError: the settings do not fit the model.
        """
        return self.where

    def needs(self) -> Needs:
        """Declare what the overridden methods do not already say."""
        return Needs()

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        """Declare what it does at modules of a denoiser; called once when it is attached.

        Raises:
            NoSiteError: the model lacks what the settings ask for; say what there is.
        """
        return ()

    def strength_at(self, index: int, total: int | None) -> float:
        """How strongly it acts at a step; 0 means not at all."""
        return self.steps.strength(index, total)

    def has_loss_at(self, index: int, total: int | None) -> bool:
        """Whether it has a loss at a step where it acts; else it costs no gradient forward."""
        return self.overrides("loss")

    def narrow(
        self, sites: tuple[Site, ...], layouts: Mapping[Site, Layout | None]
    ) -> tuple[Site, ...]:
        """Choose among the selected sites, now that their layouts are known."""
        return sites

    def begin(self, run: RunStart) -> Any:
        """Return the state of this run."""
        return None

    def read_prediction(self, state: Any, prediction: Tensor, latents: Tensor) -> None:
        """Receive the prediction of the gradient pass and its latents, ``(items, ...)`` each.

        They are those of the conditional rows, with their graph; it needs ``gradient_to="end"``.
        """

    def loss(self, state: Any, step: Step) -> Tensor:
        """Loss ``(items,)`` from what :meth:`read` kept in the gradient pass."""
        raise NotImplementedError

    def move(self, state: Any, step: Step, evaluation: int, loss: Tensor) -> Move:
        """Decide on a step against the gradient after the ``evaluation``-th loss (from 0)."""
        raise NotImplementedError

    def edit_inputs(self, call: InputsCall) -> None:
        """Edit the denoiser's arguments."""

    def added_latents(self, call: InputsCall, kind: str) -> Tensor:
        """Unscaled latents ``(items, ...)`` of its added rows of a kind with ``other_picture``.

        Asked for behind :meth:`edit_inputs`, for the items that these rows belong to, in order.
        """
        raise NotImplementedError

    def edit_qkv(self, call: AttentionCall) -> None:
        """Edit query, key and value, or add a bias to the logits."""

    def attend(self, call: AttentionCall) -> Tensor:
        """Own the kernel: return ``(R * fold, H, Q, D)``."""
        raise NotImplementedError

    def edit_scores(self, call: AttentionCall, scores: Tensor) -> Tensor:
        """Edit scaled and masked logits ``(R * fold, H, Q, K)``; forces the explicit path."""
        return scores

    def edit_probs(self, call: AttentionCall, probs: Tensor) -> Tensor:
        """Edit probabilities ``(R * fold, H, Q, K)``; forces the explicit path."""
        return probs

    def read(self, call: AttentionCall, what: Read, value: Tensor) -> None:
        """Receive what was asked for in :meth:`needs`, for the rows of ``what.branch``."""

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        """Edit the output ``(R * fold, H, Q, D)`` before the output projection."""
        return out

    def edit_prediction(self, call: PredictionCall) -> None:
        """Edit the denoiser's prediction."""

    def after_step(self, call: LatentsCall) -> Tensor | None:
        """Return other latents after ``scheduler.step``, or ``None`` to keep them."""
        return None

    def end(self, state: Any) -> Any:
        """Finish a run; return what the session keeps of it."""
        return None

    def overrides(self, method: str) -> bool:
        """Whether this technique implements a phase."""
        return getattr(type(self), method) is not getattr(Technique, method)

    def all_claims(self) -> frozenset[str]:
        """Claims that are declared, and the one that owning a kernel implies."""
        return self.claims | ({"kernel"} if self.overrides("attend") else frozenset())

    @property
    def needs_loop(self) -> bool:
        """Whether it acts on latents between steps, which a bare denoiser does not show."""
        return self.overrides("loss") or self.overrides("after_step")


def _plain(value: Any) -> Any:
    if isinstance(value, Schedule | Where):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value
