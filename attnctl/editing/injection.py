"""Where a UNet's features are taken over from an inversion, and what records them.

The places are those of FLATTEN's code for Stable Diffusion, told by level (halvings of the latents'
sides) so that they are found in UNets of other depths: on the way up, queries and keys of
self-attention at level 2 behind the first layer, at level 1 everywhere and at level 0 in the first
layer; residual features (the output of ``conv2``) of the first two blocks at level 2 and of the
first at level 1.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor

from attnctl.calls import RunStart
from attnctl.editing.features import FeatureStore
from attnctl.errors import FeatureError
from attnctl.sites import Site

_RESIDUALS = {2: (0, 1), 1: (0,)}


@dataclass(frozen=True, slots=True)
class InjectionPlaces:
    """Places of one denoiser.

    Attributes:
        sites: Paths of attention modules whose queries and keys are taken over.
        modules: Paths of modules whose outputs are taken over.
    """

    sites: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def where(self) -> str:
        """Selector of the sites, for a recorder; ``all`` if there are none."""
        return "|".join(f"path={path}" for path in self.sites) or "all"


def injection_places(sites: Iterable[Site]) -> InjectionPlaces:
    """Find FLATTEN's places in a UNet.

    Args:
        sites: Every attention site of the denoiser; those on the way up count.

    Returns:
        The places; none in a model without a way up.
    """
    found = [site for site in sites if site.stage == "up" and site.kind == "self"]
    chosen = tuple(site.path for site in found if _takes_over(site, found))
    blocks = {site.level: ".".join(site.path.split(".")[:2]) for site in found}
    modules = tuple(
        f"{blocks[level]}.resnets.{place}.conv2"
        for level, places in _RESIDUALS.items()
        if level in blocks
        for place in places
    )
    return InjectionPlaces(chosen, modules)


def check_features(
    technique: str, features: FeatureStore, run: RunStart, paths: Iterable[str]
) -> None:
    """Refuse features that do not fit a run, before its first step.

    Args:
        technique: Its name, for messages.
        features: What it takes over.
        run: The run.
        paths: Sites and modules that must have been recorded.

    Raises:
        FeatureError: another model, scheduler, size or number of frames; a path is missing.
    """
    now = run.fingerprint()
    features.check(now)
    recorded = 0 if features.fingerprint is None else features.fingerprint.items
    if not recorded or now.items % recorded:
        raise FeatureError(
            f"{technique}: the features are those of {recorded} frames, the run has {now.items}; "
            "invert this very clip, with the same frame range and stride"
        )
    missing = set(paths) - set(features.paths)
    if missing:
        raise FeatureError(
            f"{technique}: the features lack {min(missing)}; record the places that "
            "attnctl.editing.injection.injection_places names, or the sites that where= selects"
        )


def for_every_row(recorded: Tensor, like: Tensor) -> Tensor:
    """Repeat what was recorded of one branch for every branch and clip of a batch."""
    return recorded.repeat(len(like) // len(recorded), *[1] * (like.dim() - 1))


def _takes_over(site: Site, others: list[Site]) -> bool:
    """Whether a site's queries and keys are taken over."""
    if site.level == 1:
        return True
    if site.level not in (0, 2):
        return False
    same = [other for other in others if other.level == site.level]
    first = ".".join(min(same, key=lambda one: one.index).path.split(".")[:4])
    is_first = fnmatchcase(site.path, f"{first}.*")
    return is_first if site.level == 0 else not is_first
