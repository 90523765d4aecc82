"""What the benchmark of fast attention compares: sweeps, and what a person gives."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attnctl
from attnctl.bench.conditions import PLAIN, Condition, read_conditions, with_own_names
from attnctl.bench.sparse.peers import PEERS, Peer
from attnctl.errors import SettingError, nearest
from attnctl.recipes import Recipe
from attnctl.sparse_masks import PREDICTED, list_masks
from attnctl.techniques.rettention import Rettention

SWEEPS = ("re-ttention", "statistics", "masks", "tokens", "peers")
REFRESHES = (5, 3)
SPARSITIES = (0.8, 0.9, 0.95, 0.97)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to attend.

    Attributes:
        condition: Its name and its techniques.
        beside: Name of the way that it is compared with, picture by picture, beside dense.
        peer: Public code that runs in place of the techniques.
    """

    condition: Condition
    beside: str = ""
    peer: Peer | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.condition.name

    def to_plain(self) -> dict[str, Any]:
        """Plain values for a result file."""
        peer = {} if self.peer is None else {"peer": self.peer.name, "settings": self.peer.settings}
        return {**self.condition.to_plain(), "beside": self.beside, **peer}

    @contextmanager
    def attached(
        self, pipe: Any, techniques: Sequence[Any], observer: Any = None
    ) -> Generator[Any]:
        """Attach it, and an observer, for the length of a block; give the session, if there is one.

        Public code has no session and cannot be observed.
        """
        if self.peer is not None:
            with self.peer.applied(pipe):
                yield None
            return
        listed = [*techniques, *([] if observer is None else [observer])]
        if not listed:
            yield None
            return
        with attnctl.attach(pipe, listed) as session:
            yield session


def choose_ways(
    techniques: Sequence[str],
    recipes: Sequence[Path],
    sweeps: Sequence[str],
    sparsities: Sequence[float],
    refreshes: Sequence[int] = (),
    *,
    window: str | None = None,
    steps: int,
    least_tokens: int,
) -> list[Way]:
    """List what is compared; dense comes first.

    Args:
        techniques: ``-t`` values.
        recipes: Recipe files.
        sweeps: Of `SWEEPS`; all that need no public code if nothing at all is given.
        sparsities: Shares left out that sweeps try; `SPARSITIES` if empty.
        refreshes: Intervals of Re-ttention that its sweep tries; `REFRESHES` if empty.
        window: Steps of Re-ttention in its sweep, dense ones among them; its own if ``None``.
        steps: Denoising steps of a picture, which a mask alone needs to skip dense steps.
        least_tokens: Of the sparse techniques of sweeps.

    Raises:
        SettingError: a value cannot be used, or two ways are the same.
    """
    for sweep in sweeps:
        if sweep not in SWEEPS:
            raise SettingError(f"--sweep {sweep!r}; {nearest(sweep, SWEEPS)}")
    given = read_conditions(techniques, recipes)
    wanted = sweeps or (() if len(given) > 1 else SWEEPS[:-1])
    shares = sparsities or SPARSITIES
    made = [Way(condition) for condition in given]
    made += (
        _rettention(shares, refreshes or REFRESHES, window, steps, least_tokens)
        if "re-ttention" in wanted
        else []
    )
    made += _statistics(shares, least_tokens) if "statistics" in wanted else []
    made += _masks(shares, least_tokens) if "masks" in wanted else []
    made += _tokens() if "tokens" in wanted else []
    made += _peers() if "peers" in wanted else []
    with_own_names([way.condition for way in made])
    return made


def mask_alone(technique: Rettention, total: int) -> dict[str, Any]:
    """Settings of ``sparse-attention`` with the mask and the sparse steps of a technique.

    Args:
        technique: What has the mask.
        total: Steps of the run.

    Raises:
        SettingError: it has no sparse step in so short a run.
    """
    active = technique.steps.active_steps(total)
    sparse = [step for step in active if (step - active[0]) % technique.refresh]
    if not sparse:
        raise SettingError(f"{technique.name} is dense at all of {total} steps; take more --steps")
    shared = ("mask", "sparsity", "block", "least_tokens")
    own = {name: getattr(technique, name) for name in shared}
    return own | {"steps": ",".join(map(str, sparse))}


def _way(name: str, technique: str, beside: str = "", **settings: Any) -> Way:
    return Way(Condition(name, ((technique, settings),)), beside)


def _rettention(
    shares: Sequence[float],
    refreshes: Sequence[int],
    window: str | None,
    steps: int,
    least_tokens: int,
) -> list[Way]:
    """The mask alone, the whole technique, and that without growth; each at some intervals."""
    made: list[Way] = []
    for share in shares:
        for refresh in refreshes:
            ending = f"{share:.4g} every {refresh}"
            given: dict[str, Any] = {"sparsity": share, "least_tokens": least_tokens}
            given |= {"refresh": refresh} | ({} if window is None else {"steps": window})
            alone = f"mask alone {ending}"
            made += [
                _way(alone, "sparse-attention", **mask_alone(Rettention(**given), steps)),
                _way(f"re-ttention {ending}", "re-ttention", alone, **given),
                _way(f"no growth {ending}", "re-ttention", alone, growth=0.0, **given),
            ]
    return made


def _statistics(shares: Sequence[float], least_tokens: int) -> list[Way]:
    """Re-ttention without its residual."""
    shared: dict[str, Any] = {"least_tokens": least_tokens, "residual": False}
    return [_way(f"statistic {s:.4g}", "re-ttention", sparsity=s, **shared) for s in shares]


def _masks(shares: Sequence[float], least_tokens: int) -> list[Way]:
    names = [name for name in list_masks() if name != "radial"]  # for clips, whatever the share
    names.sort(key=lambda name: name == PREDICTED)
    return [
        _way(
            f"{name} {share:.4g}", "sparse-attention",
            mask=name, sparsity=share, least_tokens=least_tokens,
        )
        for share in shares
        for name in names
    ]  # fmt: skip


def _tokens() -> list[Way]:
    merging = [_way(f"merging {r:g}", "token-merging", ratio=r) for r in (0.25, 0.5, 0.75)]
    sampling = [_way(f"sampling {f}", "token-downsampling", factor=f) for f in (2, 3, 4)]
    agents = [_way(f"agents, merging {r:g}", "agent-attention", ratio=r) for r in (0.0, 0.4)]
    second = ("token-merging", {"ratio": 0.4, "steps": "40%-"})
    published = Condition("agents, then merging", (("agent-attention", {}), second))
    return [*merging, *sampling, *agents, Way(published)]


def _peers() -> list[Way]:
    """Public code, each beside ours at the same settings."""
    made: list[Way] = []
    for peer in PEERS:
        name, settings = peer.ours
        ours = _way(f"{name} as {peer.name}", name, **settings)
        made += [Way(Condition(peer.name), ours.name, peer), ours]
    return made


def is_dense(way: Way) -> bool:
    """Whether a way is the plain pipeline."""
    return way.name == PLAIN


def build_techniques(way: Way) -> list[Any]:
    """The techniques of a way that needs no words."""
    entries = way.condition.entries([])
    return Recipe.from_dict({"prompt": "", "techniques": entries}, name="").build_techniques()
