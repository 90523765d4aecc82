"""Colours, shapes and backgrounds of the shapes world."""

from dataclasses import dataclass

from attnctl.shapes.distances import DISTANCES

PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.14, 0.14),
    "green": (0.13, 0.66, 0.22),
    "blue": (0.16, 0.30, 0.90),
    "yellow": (0.96, 0.84, 0.12),
    "purple": (0.52, 0.16, 0.74),
    "orange": (0.97, 0.50, 0.06),
    "cyan": (0.12, 0.80, 0.86),
    "pink": (0.98, 0.52, 0.76),
}
BACKGROUNDS: dict[str, tuple[float, float]] = {
    "light": (0.84, 0.96),
    "grey": (0.42, 0.60),
    "dark": (0.05, 0.20),
}
MOST_OBJECTS = 3


@dataclass(frozen=True)
class Vocabulary:
    """The colours and shapes that scenes are made of; order gives their integer codes."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    def __post_init__(self) -> None:
        unknown = [c for c in self.colours if c not in PALETTE]
        unknown += [s for s in self.shapes if s not in DISTANCES]
        if unknown:
            raise ValueError(
                f"not in the shapes world: {', '.join(unknown)}; colours are {', '.join(PALETTE)}, "
                f"shapes are {', '.join(DISTANCES)}"
            )
        if len(self.colours) * len(self.shapes) < MOST_OBJECTS:
            raise ValueError(f"a vocabulary needs at least {MOST_OBJECTS} kinds of objects")


SMALL_VOCABULARY = Vocabulary(tuple(PALETTE)[:4], tuple(DISTANCES)[:4])
LARGE_VOCABULARY = Vocabulary(tuple(PALETTE), tuple(DISTANCES))
