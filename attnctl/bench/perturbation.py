"""Perturbed-attention guidance beside the pipelines in diffusers: what it adds to a plain run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import attnctl
from attnctl.bench.machine import machine_record
from attnctl.bench.networks import (
    parameters_of,
    pipeline_around,
    pipeline_around_sd3,
    random_inputs,
    small_sd3,
    small_unet,
    stable_diffusion_3,
    stable_diffusion_unet,
)
from attnctl.bench.statistics import median
from attnctl.bench.timing import Times, ratio, take_turns
from attnctl.errors import SettingError, UnsupportedModelError, nearest

SCALE = 3.0
GUIDANCE = 5.0
TOKENS = 77
SEED = 7
TOLERANCE = 1e-2
"""Largest difference of latents that counts as equal, as a share of the effect of the guidance;
two roundings of the largest latent are allowed in any case."""

DTYPES = ("float32", "bfloat16")

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Place:
    """Where attention is perturbed.

    Attributes:
        where: Selector of ours.
        layers: The same for the pipeline in diffusers.
        form: Form of the perturbation that this pipeline has.
        goal: Largest wanted share of what the pipeline in diffusers adds; None without one.
    """

    where: str
    layers: str
    form: str
    goal: float | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """One network and the places where it is perturbed.

    Attributes:
        build: Makes its pipeline, with random weights.
        latents: Side of the latents in cells, by default.
        places: Each is measured on its own.
    """

    build: Callable[[], Any]
    latents: int
    places: tuple[Place, ...]


def _layer(number: int, goal: float | None = None) -> Place:
    return Place(f"layers={number},joint", f"blocks.{number}", "image-block", goal)


_MIDDLE = "mid:self"
NETWORKS = {
    "sd15": Network(
        lambda: pipeline_around(stable_diffusion_unet()), 32, (Place(_MIDDLE, "mid", "joint", 0.7),)
    ),
    "sd3": Network(
        lambda: pipeline_around_sd3(stable_diffusion_3()), 32, (_layer(12, 0.5), _layer(18, 0.5))
    ),
    "tiny-unet": Network(
        lambda: pipeline_around(small_unet()), 16, (Place(_MIDDLE, "mid", "joint"),)
    ),
    "tiny": Network(
        lambda: pipeline_around_sd3(small_sd3()), 16, (_layer(2), _layer(3))
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PerturbationSettings:
    """What is measured.

    Attributes:
        network: ``sd15`` (860 M random parameters, 3.4 GB), ``sd3`` (2 B, 4.1 GB in bfloat16),
            ``tiny-unet`` or ``tiny`` (their plans at toy size).
        repeats: Rounds; in each, every side has a turn.
        steps: Denoising steps of a run.
        latents: Side of the latents in cells; ``None`` takes the network's own.
        dtype: ``float32`` or ``bfloat16``; ``None`` takes the network's own, which is float32 but
            for ``sd3``.
    """

    network: str = "sd15"
    repeats: int = 7
    steps: int = 1
    latents: int | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise SettingError(f"--network {self.network!r}; {nearest(self.network, NETWORKS)}")
        if self.latents is not None and (self.latents < 8 or self.latents % 8):
            raise SettingError(f"--latents {self.latents} must be a multiple of 8")
        if self.dtype not in (None, *DTYPES):
            raise SettingError(f"--dtype {self.dtype!r}; {nearest(self.dtype, DTYPES)}")

    @property
    def side(self) -> int:
        """Side of the latents in cells."""
        return self.latents or NETWORKS[self.network].latents


def measure(
    settings: PerturbationSettings, *, say: Callable[[str], None] = lambda _text: None
) -> dict[str, Any]:
    """Run plain, perturbed by diffusers and perturbed by us in turn, at each place.

    Returns:
        Plain values: times, the largest difference of the final latents beside the effect of the
        guidance, and ``added_ratio``: what ours adds to a plain run over what theirs adds, by the
        clock and in CPU time.

    Raises:
        UnsupportedModelError: diffusers no longer has the pipelines.
    """
    network = NETWORKS[settings.network]
    say(f"building {settings.network}")
    torch.manual_seed(SEED)
    pipe = network.build()
    denoiser = denoiser_of(pipe)
    if settings.dtype is not None:
        denoiser.to(getattr(torch, settings.dtype))
    return {
        "benchmark": "perturbation",
        "settings": asdict(settings),
        "machine": machine_record(),
        "network": {
            "name": settings.network,
            "parameters": parameters_of(denoiser),
            "dtype": str(denoiser.dtype).removeprefix("torch."),
            "latents": f"{settings.side} x {settings.side}",
            "text_tokens": TOKENS,
            "steps": settings.steps,
        },
        "places": [_measure_at(pipe, place, settings, say) for place in network.places],
    }


def _measure_at(
    pipe: Any, place: Place, settings: PerturbationSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    sides = {
        "plain": plain_run(pipe, settings),
        "port": port_run(pipe, place, settings),
        "ours": our_run(pipe, place, settings),
    }
    finals = {name: run().float() for name, run in sides.items()}
    difference = float((finals["ours"] - finals["port"]).abs().max())
    effect = float((finals["port"] - finals["plain"]).abs().max())
    epsilon = torch.finfo(denoiser_of(pipe).dtype).eps
    rounding = float(epsilon * finals["port"].abs().max())
    say(f"{place.where}: difference {difference:.1e}, effect of the guidance {effect:.1e}")
    times = take_turns(sides, settings.repeats, say=lambda text: say(f"{place.where}: {text}"))
    return {
        **asdict(place),
        "largest_difference": difference,
        "effect": effect,
        "rounding": rounding,
        "is_equal": difference <= max(TOLERANCE * effect, 2 * rounding),
        "added_ratio": ratio(_added(times, "ours", "wall"), _added(times, "port", "wall")),
        "added_cpu_ratio": ratio(_added(times, "ours", "cpu"), _added(times, "port", "cpu")),
        "added_share": ratio(_added(times, "ours", "cpu"), times["plain"].cpu),
        **{name: {"seconds": median(t.wall), "rounds": asdict(t)} for name, t in times.items()},
    }


def _added(times: dict[str, Times], name: str, clock: str) -> list[float]:
    """Seconds of each round beyond those of the plain pipeline."""
    pairs = zip(getattr(times[name], clock), getattr(times["plain"], clock), strict=True)
    return [max(mine - plain, 1e-9) for mine, plain in pairs]


def denoiser_of(pipe: Any) -> Any:
    """The denoiser of a pipeline, a U-Net or a transformer."""
    return getattr(pipe, "unet", None) or pipe.transformer


def plain_run(pipe: Any, settings: PerturbationSettings) -> Run:
    """Make a run without perturbation."""
    arguments = _arguments(pipe, settings)
    return lambda: pipe(**arguments).images


def our_run(pipe: Any, place: Place, settings: PerturbationSettings) -> Run:
    """Make a run of ours: attach, call, detach."""
    arguments = _arguments(pipe, settings)
    technique = attnctl.PAG(scale=SCALE, where=attnctl.Where(place.where), form=place.form)

    def draw() -> Tensor:
        with attnctl.attach(pipe, [technique]):
            return pipe(**arguments).images

    return draw


def port_run(pipe: Any, place: Place, settings: PerturbationSettings) -> Run:
    """Make a run of the pipeline in diffusers on the same parts.

    Raises:
        UnsupportedModelError: diffusers no longer has it.
    """
    try:
        from diffusers import StableDiffusion3PAGPipeline, StableDiffusionPAGPipeline
    except ImportError:
        raise UnsupportedModelError(
            "this diffusers has no pipelines with perturbed-attention guidance; the comparison was"
            " made with 0.42.1"
        ) from None
    arguments = _arguments(pipe, settings)
    parts: dict[str, Any] = {**pipe.components, "pag_applied_layers": place.layers}
    if hasattr(pipe, "unet"):
        port: Any = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False)
    else:
        port = StableDiffusion3PAGPipeline(**_known(parts, StableDiffusion3PAGPipeline))
    port.set_progress_bar_config(disable=True)
    return lambda: port(pag_scale=SCALE, **arguments).images


def _known(parts: dict[str, Any], cls: Any) -> dict[str, Any]:
    """The parts that a pipeline takes: that of Stable Diffusion 3 has no image encoder."""
    names = cls.__init__.__code__.co_varnames
    return {name: part for name, part in parts.items() if name in names}


def _arguments(pipe: Any, settings: PerturbationSettings) -> dict[str, Any]:
    """A prompt of random embeddings, and latents to start from."""
    return random_inputs(
        pipe, side=settings.side, steps=settings.steps, guidance=GUIDANCE, tokens=TOKENS, seed=SEED
    )
