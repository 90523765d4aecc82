"""Attend-and-Excite beside the deprecated pipeline in diffusers: the same latents, in what time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import attnctl
from attnctl.bench.machine import machine_record
from attnctl.bench.networks import medium_unet, parameters_of, pipeline_around, tiny_unet
from attnctl.bench.statistics import median
from attnctl.bench.timing import Times, ratio, take_turns
from attnctl.errors import SettingError, UnsupportedModelError, nearest

STEPS = {"tiny": 10, "shapes": 50, "medium": 4}
"""Networks, and how many steps a run on each takes by default."""

RANDOM = {"tiny": tiny_unet, "medium": medium_unet}
PROMPT = "a red circle and a blue square"
SUBJECTS = ("circle", "square")
POSITIONS = (3, 7)  # of the subjects; BOS is 0
GUIDANCE = 5.0
SEED = 7
TOLERANCE = 1e-4
"""Largest difference of latents that counts as equal."""

Run = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run: steps, steps that move the latents, pictures, size and thresholds.

    ``latents`` is their side in cells, ``None`` for that of the network.
    """

    steps: int
    altered: int
    images: int
    scale_factor: float
    thresholds: dict[int, float]
    latents: int | None = None


@dataclass(frozen=True, slots=True)
class PortSettings:
    """What is measured.

    Attributes:
        network: ``tiny``, ``shapes``, ``medium`` or ``all``.
        repeats: Rounds; in each, both sides have a turn.
        images: Pictures of a run.
        steps: DDIM steps; half of them move the latents. By default `STEPS`: the reference's 50
            on ``shapes``, fewer on the others, which are random.
        scale_factor: Size of a gradient step.
        thresholds: Steps of refinement and what each subject's map must reach there. Random
            weights never reach them, so ``tiny`` refines as long as may be; none on ``medium``,
            which would take too long on a processor.
        latents: Side of the latents in cells, at least 16; by default that of each network.
    """

    network: str = "all"
    repeats: int = 5
    images: int = 1
    steps: int | None = None
    scale_factor: float = 20.0
    thresholds: Mapping[int, float] = field(default_factory=lambda: {0: 0.05, 10: 0.5, 20: 0.8})
    latents: int | None = None

    def __post_init__(self) -> None:
        if self.network not in (*STEPS, "all"):
            raise SettingError(
                f"--network {self.network!r}; {nearest(self.network, (*STEPS, 'all'))}"
            )

    def run_on(self, network: str) -> RunSettings:
        """What a run on one network does."""
        steps = self.steps or STEPS[network]
        thresholds = {} if network == "medium" else dict(self.thresholds)
        altered = steps // 2
        return RunSettings(steps, altered, self.images, self.scale_factor, thresholds, self.latents)

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks to measure on."""
        return tuple(STEPS) if self.network == "all" else (self.network,)


@dataclass(slots=True)
class Work:
    """What a run asked of the denoiser.

    Attributes:
        plain: Forwards without gradient.
        gradient: Forwards with gradient.
        gradient_whole: Those of them that ran to the last layer.
        backward: Backward passes to the latents.
    """

    plain: int = 0
    gradient: int = 0
    gradient_whole: int = 0
    backward: int = 0


def measure(
    settings: PortSettings, *, say: Callable[[str], None] = lambda _text: None
) -> dict[str, Any]:
    """Run both sides, and the plain pipeline, in turn on each network.

    Returns:
        Plain values: times, work, the largest difference of the final latents, and ratios:
        ``speedup`` of whole runs, ``cpu_speedup`` likewise in CPU time, ``added_speedup`` of what
        Attend-and-Excite adds to a plain run, in CPU time.

    Raises:
        UnsupportedModelError: diffusers no longer has the pipeline.
    """
    return {
        "benchmark": "attend-and-excite",
        "settings": asdict(settings),
        "machine": machine_record(),
        "networks": [_measure_one(name, settings, say) for name in settings.networks],
    }


def _measure_one(
    network: str, settings: PortSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    pipe = build(network)
    run = settings.run_on(network)
    sides = {
        "port": port_run(pipe, run), "ours": our_run(pipe, run), "plain": plain_run(pipe, run)
    }  # fmt: skip
    finals: dict[str, Tensor] = {}
    work: dict[str, Work] = {}
    for name, side in sides.items():
        with counted(pipe.unet) as counts:
            finals[name] = side()
        work[name] = counts
    difference = float((finals["port"] - finals["ours"]).abs().max())
    say(f"{network}: largest difference of the latents {difference:.1e}")
    times = take_turns(sides, settings.repeats, say=lambda text: say(f"{network}: {text}"))
    return {
        "network": network,
        "run": asdict(run),
        "parameters": parameters_of(pipe.unet),
        "latents": list(finals["ours"].shape),
        "largest_difference": difference,
        "is_equal": difference <= TOLERANCE,
        "speedup": ratio(times["port"].wall, times["ours"].wall),
        "cpu_speedup": ratio(times["port"].cpu, times["ours"].cpu),
        "added_speedup": ratio(_added(times, "port"), _added(times, "ours")),
        **{name: _side(times[name], work[name]) for name in sides},
    }


def _added(times: Mapping[str, Times], name: str) -> list[float]:
    """CPU seconds of each round beyond those of the plain pipeline."""
    pairs = zip(times[name].cpu, times["plain"].cpu, strict=True)
    return [max(mine - plain, 1e-9) for mine, plain in pairs]


def _side(times: Times, work: Work) -> dict[str, Any]:
    return {"seconds": median(times.wall), "rounds": asdict(times), "work": asdict(work)}


def build(network: str) -> Any:
    """Build or load the pipeline of a network, with DDIM, in fp32."""
    if network == "shapes":
        pipe = attnctl.load_pipeline("shapes")
        pipe.set_progress_bar_config(disable=True)
        return pipe
    torch.manual_seed(SEED)
    return pipeline_around(RANDOM[network]())


def plain_run(pipe: Any, run: RunSettings) -> Run:
    """Make a run without Attend-and-Excite."""

    def draw() -> Tensor:
        return pipe([PROMPT] * run.images, **_arguments(pipe, run)).images

    return draw


def our_run(pipe: Any, run: RunSettings) -> Run:
    """Make a run of ours: attach, call, detach."""
    technique = attnctl.AttendAndExcite(
        subjects=list(SUBJECTS),
        steps=attnctl.until(run.altered),
        thresholds={**run.thresholds},
        scale_factor=run.scale_factor,
        resolution=16,
    )

    def draw() -> Tensor:
        with attnctl.attach(pipe, [technique]):
            return pipe([PROMPT] * run.images, **_arguments(pipe, run)).images

    return draw


def port_run(pipe: Any, run: RunSettings) -> Run:
    """Make a run of the pipeline in diffusers on the same parts.

    Raises:
        UnsupportedModelError: diffusers no longer has it.
    """
    try:
        from diffusers import StableDiffusionAttendAndExcitePipeline as Port
    except ImportError:
        raise UnsupportedModelError(
            "this diffusers has no StableDiffusionAttendAndExcitePipeline; the comparison was made"
            " with 0.42.1"
        ) from None
    parts = {k: v for k, v in pipe.components.items() if k != "image_encoder"}
    port: Any = Port(**parts, requires_safety_checker=False)
    port.set_progress_bar_config(disable=True)

    def draw() -> Tensor:
        return port(
            [PROMPT] * run.images,
            token_indices=[list(POSITIONS)] * run.images,
            max_iter_to_alter=run.altered,
            thresholds=run.thresholds,
            scale_factor=run.scale_factor,
            attn_res=(16, 16),
            **_arguments(pipe, run),
        ).images.detach()

    return draw


def _arguments(pipe: Any, run: RunSettings) -> dict[str, Any]:
    side = (run.latents or pipe.unet.config.sample_size) * pipe.vae_scale_factor
    return {
        "height": side,
        "width": side,
        "num_inference_steps": run.steps,
        "guidance_scale": GUIDANCE,
        "generator": [torch.Generator().manual_seed(SEED + i) for i in range(run.images)],
        "output_type": "latent",
    }


@contextmanager
def counted(unet: nn.Module) -> Generator[Work]:
    """Count what happens to a U-Net inside a block, by hooks on its first and last layer."""
    work = Work()

    def on_backward(gradient: Tensor) -> None:
        work.backward += 1

    def on_first(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args[0].requires_grad:
            work.gradient += 1
            args[0].register_hook(on_backward)
        else:
            work.plain += 1

    def on_last(module: nn.Module, args: tuple[Any, ...]) -> None:
        work.gradient_whole += int(args[0].requires_grad)

    with ExitStack() as stack:
        stack.callback(unet.get_submodule("conv_in").register_forward_pre_hook(on_first).remove)
        stack.callback(unet.get_submodule("conv_out").register_forward_pre_hook(on_last).remove)
        yield work
