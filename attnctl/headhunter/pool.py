"""The heads that a search chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attnctl.engine.targets import find_denoisers
from attnctl.errors import NoSiteError, UnsupportedModelError
from attnctl.families import find_family
from attnctl.head_layers import numbered_layers
from attnctl.sites import Site, find_sites
from attnctl.where import Where


@dataclass(frozen=True, slots=True, order=True)
class Candidate:
    """One head: number of its layer, its own number, and the path of the layer."""

    layer: int
    head: int
    path: str

    def __str__(self) -> str:
        return f"layer {self.layer} head {self.head}"


def sites_of(pipe: Any) -> tuple[Site, ...]:
    """Every attention site of the pipeline's denoiser.

    Raises:
        UnsupportedModelError: it has none, or several.
    """
    _, denoisers = find_denoisers(pipe)
    if len(denoisers) != 1:
        raise UnsupportedModelError(
            f"{type(pipe).__name__} has the denoisers {', '.join(denoisers)}; heads are searched "
            "in pipelines with one"
        )
    ((name, model),) = denoisers.items()
    return tuple(find_sites(name, model, find_family(model)).values())


def candidates(sites: Sequence[Site], layers: str = "") -> tuple[Candidate, ...]:
    """List the heads of the numbered layers, or of some of them.

    Args:
        sites: Every attention site of a denoiser.
        layers: As in :class:`~attnctl.headhunter.HuntSettings`.

    Raises:
        WhereError: ``layers`` cannot be read.
        NoSiteError: a layer is not there.
        UnsupportedModelError: a layer does not tell how many heads it has.
    """
    numbered = numbered_layers(sites)
    known = [site.layer for site in numbered]
    asked = set(Where(f"layers={layers}").selections()[0].layers) if layers else set(known)
    unknown = sorted(asked - set(known))
    if unknown:
        raise NoSiteError(f"--layers {layers}: no layer {unknown[0]}; there are 0 to {known[-1]}")
    chosen = [site for site in numbered if site.layer in asked]
    silent = [site.path for site in chosen if not site.heads]
    if silent:
        raise UnsupportedModelError(f"{silent[0]} does not tell how many heads it has")
    return tuple(Candidate(s.layer, head, s.path) for s in chosen for head in range(s.heads))
