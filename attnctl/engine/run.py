"""One run: what is known and kept from ``set_timesteps`` to the last step."""

import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from torch import Tensor, nn

from attnctl.calls import Layout
from attnctl.engine.cache import SiteCache
from attnctl.engine.clock import Clock
from attnctl.errors import UnsupportedModelError
from attnctl.report import Report


@dataclass(slots=True)
class Scaling:
    """What ``scheduler.scale_model_input`` was given and gave in the step that is open."""

    original: Any
    sample: Tensor
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def timestep(self) -> Any:
        """The timestep that came with the latents."""
        return self.arguments[0] if self.arguments else self.options.get("timestep", 0)

    def apply(self, latents: Tensor) -> Tensor:
        """Scale other latents of the same step, with their gradient."""
        return self.original(latents, *self.arguments, **self.options)


@dataclass(frozen=True, slots=True)
class Kept:
    """What the later denoiser calls of a step need of its first one.

    Attributes:
        shift: What the conditional rows were given on top, ``(items, ...)``.
        delta: The part of it that techniques added.
        cond: Conditional prediction without it, where the unconditional one will be solved for.
        rescale: How far the guided prediction's deviation is pulled back.
    """

    shift: Tensor | None
    delta: Tensor | None
    cond: Tensor | None
    rescale: float


ParameterSlot = tuple[dict[str, nn.Parameter | None], str]


@dataclass(frozen=True, slots=True)
class GradientFacts:
    """What gradient passes must know of a denoiser; found once a run, by a walk over its modules.

    Attributes:
        trainable: Where the parameters with a gradient stand.
        is_checkpointing: Whether its backward runs parts of the forward again.
    """

    trainable: list[ParameterSlot]
    is_checkpointing: bool


@dataclass(slots=True)
class Run:
    """State of one run; dropped when it ends, also after an error.

    Attributes:
        clock: Counts its steps.
        report: What happened.
        items: Pictures or clips, once known.
        is_verified: Whether the scheduler has confirmed the number of items.
        is_first_call: Whether no call has been planned yet.
        layouts: Layout of each selected site in the first call, by denoiser and path.
        layouts_of_calls: The same for each of the calls of a step, by denoiser and number.
        states: What each technique keeps, by name.
        scaling: Latents of the open step before the scheduler's scaling.
        moved: Latents that the open step's gradient guidance made, for the scheduler.
        kept: What later calls of the open step need of its first one.
        encoded: Denoiser arguments of prompts beside the pipeline's own.
        site_texts: What cross-attention sites are given of those, by denoiser and prompt.
        rows: Rows of the latest call, for error messages.
        size: Shape of the latents that the latest call was given.
        sizes: Shapes of a bare denoiser's arguments.
        gradients: What gradient passes know of each denoiser.
        cache: What techniques keep at sites from step to step.
    """

    clock: Clock
    report: Report
    items: int | None = None
    is_verified: bool = False
    has_begun: bool = False
    layouts: dict[tuple[str, str], Layout | None] = field(
        default_factory=dict[tuple[str, str], Layout | None]
    )
    is_first_call: bool = True
    layouts_of_calls: dict[tuple[str, int], dict[tuple[str, str], Layout | None]] = field(
        default_factory=dict[tuple[str, int], dict[tuple[str, str], Layout | None]]
    )
    states: dict[str, Any] = field(default_factory=dict[str, Any])
    scaling: Scaling | None = None
    moved: Tensor | None = None
    kept: Kept | None = None
    encoded: dict[Any, Mapping[str, Tensor]] = field(
        default_factory=dict[Any, Mapping[str, Tensor]]
    )
    site_texts: dict[Any, Mapping[str, Any]] = field(default_factory=dict[Any, Mapping[str, Any]])
    rows: int = 0
    size: tuple[int, ...] = ()
    sizes: dict[str, Any] = field(default_factory=dict[str, Any])
    gradients: dict[str, GradientFacts] = field(default_factory=dict[str, GradientFacts])
    thread: int = field(default_factory=threading.get_ident)
    cache: SiteCache = field(init=False)

    def __post_init__(self) -> None:
        self.cache = SiteCache(self.report)

    def see(self, latents: Any, rows: int) -> None:
        """Note the latents of a call.

        Raises:
            UnsupportedModelError: their size changed, so that layouts no longer fit.
        """
        size = tuple(getattr(latents, "shape", ()))
        if self.layouts and size[1:] != self.size[1:]:
            raise UnsupportedModelError(
                f"the latents changed from {self.size[1:]} to {size[1:]} in the middle of a run, "
                "so where tokens lie is no longer known; call the pipeline so that their size "
                "stays (ChronoEdit: enable_temporal_reasoning=False), or detach techniques that "
                "need to know"
            )
        self.rows, self.size = rows, size

    def is_mine(self) -> bool:
        """Whether this thread opened the run."""
        return self.thread == threading.get_ident()


def pipeline_frame(pipe: Any, thread: int | None = None) -> FrameType | None:
    """The outermost frame of a thread that is inside a call of the pipeline, if there is one."""
    ident = threading.get_ident() if thread is None else thread
    frame = sys._getframe(1) if thread is None else sys._current_frames().get(ident)
    found = None
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            found = frame
        frame = frame.f_back
    return found
