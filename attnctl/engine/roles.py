"""Where a forward stands in a run: step, pass, rows with roles, and the layout of tokens."""

from dataclasses import dataclass
from typing import Literal

PassKind = Literal["main", "gradient", "extra"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of one site are, in one run.

    Attributes:
        grid: Frames, height and width of the image tokens, frames slowest.
        image: Positions of the image tokens on the query axis.
        text: Positions of the text tokens on the key axis; ``None`` if there are none.
        fold: What the batch axis holds besides rows.
        is_video: The model knows frames, and ``grid`` counts those of one clip. A picture model
            does not; there the items of the batch may be the frames of a clip.
    """

    grid: tuple[int, int, int]
    image: slice
    text: slice | None = None
    fold: Literal["rows", "frames", "positions"] = "rows"
    is_video: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image tokens of a frame."""
        return self.grid[1], self.grid[2]


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of the denoiser's batch.

    Attributes:
        branch: Guidance branch.
        item: Picture or clip.
        kind: ``"main"``, the kind of an added row, or ``"weaker"`` where the pipeline itself
            weakens the model in a further call: edits act there, and nothing is read.
        owner: Label of the technique that an added row belongs to.
        is_other_picture: An added row with latents of its own: its owner alone edits it.
    """

    branch: str
    item: int
    kind: str = "main"
    owner: str = ""
    is_other_picture: bool = False

    @property
    def is_added(self) -> bool:
        """Whether it is a row of ours, not one of the pipeline's."""
        return self.owner != ""

    def fits(self, owner: str, kind: str | None) -> bool:
        """Whether a technique means this row by ``kind``: rows of its own, ``None`` for all."""
        if self.is_other_picture and self.owner != owner:
            return False
        return kind is None or (self.kind == kind and self.owner in ("", owner))


Rows = tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One denoising step.

    Attributes:
        index: Solver step, from 0; both evaluations of a two-stage solver share it.
        total: Solver steps of this run; ``None`` for a bare denoiser.
        stage: 0 for the first evaluation of a solver step, from 1 for its corrections.
        iteration: Number of ``scheduler.step`` calls before this one.
        timestep: What the denoiser is given.
        sigma: Noise level of sigma-space schedulers, if there is one.
    """

    index: int
    total: int | None
    stage: int = 0
    iteration: int = 0
    timestep: float = 0.0
    sigma: float | None = None

    @property
    def fraction(self) -> float:
        """Part of the run that lies behind, in [0, 1)."""
        return self.index / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward of one denoiser: the pipeline's own, or one of ours."""

    kind: PassKind
    call: int
    rows: Rows
