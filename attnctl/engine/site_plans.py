"""What happens at one attention site in one pass, and by which technique."""

from dataclasses import dataclass

from attnctl.calls import Layout, Read
from attnctl.sites import Site
from attnctl.technique import Technique


@dataclass(frozen=True, slots=True)
class Link:
    """One technique at one site and step."""

    technique: Technique
    strength: float
    heads: tuple[int, ...] | None
    edits: frozenset[str]
    reads: tuple[Read, ...]
    label: str


@dataclass(frozen=True, slots=True)
class SitePlan:
    """What happens at one site in one pass."""

    site: Site
    layout: Layout | None
    links: tuple[Link, ...]

    @property
    def owner(self) -> Link | None:
        """The link that brings its own kernel."""
        return next((link for link in self.links if "attend" in link.edits), None)

    @property
    def is_explicit(self) -> bool:
        """Whether the whole attention map must be computed."""
        return any(
            link.edits & {"edit_scores", "edit_probs"} or any(r.what == "probs" for r in link.reads)
            for link in self.links
        )
