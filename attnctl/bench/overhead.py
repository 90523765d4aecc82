"""What it costs to be attached: idle techniques and heat maps beside the plain pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

import attnctl
from attnctl.bench.machine import machine_record
from attnctl.bench.memory import peak_bytes
from attnctl.bench.networks import (
    parameters_of,
    pipeline_around,
    small_unet,
    stable_diffusion_unet,
)
from attnctl.bench.statistics import median, quartiles
from attnctl.bench.timing import Times, ratio, take_turns
from attnctl.calls import AttentionCall
from attnctl.errors import SettingError, nearest
from attnctl.kernels.columns import probability_columns
from attnctl.technique import Technique

SIZES = {"sd15": 32, "small": 16}
"""Networks, and the side of their latents by default. Stable Diffusion itself has 64, which takes
four times as long a forward, so that its overhead is a smaller share still."""

STEPS = 2
IDLE_ROUNDS = 25
BATCH = 2  # of a guided picture: without and with the prompt
TOKENS = 64  # of the random prompt
MAP_TOKENS = 4096
TEXT_TOKENS = 77
MAP_HEADS = 8
MAP_WIDTH = 40

Pipeline = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class OverheadSettings:
    """What is measured.

    Attributes:
        size: ``sd15`` (860 M random parameters, 3.4 GB) or ``small`` (the ``shapes`` denoiser).
        repeats: Rounds; in each, every side has a turn of two denoising steps.
        latents: Side of the latents in cells; ``None`` takes the size's own.
    """

    size: str = "sd15"
    repeats: int = 7
    latents: int | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise SettingError(f"--size {self.size!r}; {nearest(self.size, SIZES)}")
        if self.latents is not None and (self.latents < 8 or self.latents % 8):
            raise SettingError(f"--latents {self.latents} must be a multiple of 8")

    @property
    def side(self) -> int:
        """Side of the latents in cells."""
        return self.latents or SIZES[self.size]


@dataclass(frozen=True)
class Idle(Technique):
    """Stand at every attention layer and never act."""

    name: ClassVar[str] = "idle"

    def strength_at(self, index: int, total: int | None) -> float:
        """Never act."""
        return 0.0

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        """Never called."""
        raise AssertionError("an idle technique was called")


def measure(
    settings: OverheadSettings, *, say: Callable[[str], None] = lambda _text: None
) -> dict[str, Any]:
    """Time plain, idle and heat-map runs in turn, and weigh the memory of heat maps.

    Returns:
        Plain values: seconds a forward, ratios to plain, the cost of being idle, memory.
    """
    say(f"building {settings.size}")
    pipe = _build(settings.size)
    run = _runner(pipe, settings)
    sides = {
        "plain": run,
        "idle": lambda: _attached(pipe, Idle(), run),
        "heat-maps": lambda: _attached(pipe, attnctl.HeatMaps(), run),
    }
    times = take_turns(sides, settings.repeats, say=say)
    return {
        "benchmark": "overhead",
        "settings": asdict(settings),
        "machine": machine_record(),
        "network": {
            "name": settings.size,
            "parameters": parameters_of(pipe.unet),
            "latents": f"{settings.side} x {settings.side}",
            "batch": BATCH,
            "attention_layers": len(pipe.unet.attn_processors),
        },
        "sides": {name: _side(one, times["plain"]) for name, one in times.items()},
        "idle": _idle_cost(pipe, settings, median(times["plain"].cpu) / STEPS),
        "memory": map_memory(),
    }


def _side(mine: Times, plain: Times) -> dict[str, Any]:
    return {
        "seconds": median(mine.wall) / STEPS,
        "ratio": ratio(mine.wall, plain.wall),
        "cpu_ratio": ratio(mine.cpu, plain.cpu),
        "rounds": asdict(mine),
    }


def _build(size: str) -> Any:
    torch.manual_seed(0)
    return pipeline_around(small_unet() if size == "small" else stable_diffusion_unet())


def _runner(pipe: Any, settings: OverheadSettings) -> Callable[[], Tensor]:
    """Make a run of a few denoising steps that ends at the latents."""
    source = torch.Generator().manual_seed(0)
    width = int(pipe.unet.config.cross_attention_dim)
    text = torch.randn(2, 1, TOKENS, width, generator=source)
    start = torch.randn(1, 4, settings.side, settings.side, generator=source)
    side_px = settings.side * pipe.vae_scale_factor

    def run() -> Tensor:
        return pipe(
            prompt_embeds=text[0],
            negative_prompt_embeds=text[1],
            latents=start,
            height=side_px,
            width=side_px,
            num_inference_steps=STEPS,
            output_type="latent",
        ).images

    return run


def _attached(pipe: Any, technique: Technique, run: Callable[[], Tensor]) -> Tensor:
    """Attach, run, detach: the whole price that a user pays."""
    with attnctl.attach(pipe, [technique]):
        return run()


def _idle_cost(pipe: Any, settings: OverheadSettings, forward: float) -> dict[str, Any]:
    """Time what being idle adds to a forward, alone.

    The same hooks stand on a denoiser with next to nothing to compute: there the difference is not
    lost in the noise of a forward of seconds. It is scaled by the number of attention layers.

    Args:
        pipe: The pipeline that was timed.
        settings: What is measured.
        forward: CPU seconds of a plain forward of that pipeline.
    """
    tiny = pipeline_around(small_unet())
    run = _runner(tiny, OverheadSettings("small", 1, 8))
    added: list[float] = []
    attaching: list[float] = []
    run()
    for number in range(max(settings.repeats, IDLE_ROUNDS)):
        before = _cpu_seconds(run) if number % 2 else None  # turns swap: none is always second
        started = time.process_time()
        session = attnctl.attach(tiny, [Idle()])
        attaching.append(time.process_time() - started)
        idle = _cpu_seconds(run)
        session.detach()
        plain = _cpu_seconds(run) if before is None else before
        added.append((idle - plain) / STEPS)
    layers = len(pipe.unet.attn_processors) / len(tiny.unet.attn_processors)
    middle, (low, high) = median(added) * layers, quartiles(added)
    return {
        "rounds": len(added),
        "microseconds_a_forward": 1e6 * middle,
        "quartiles": [1e6 * low * layers, 1e6 * high * layers],
        "share": middle / forward,
        "attach_milliseconds": 1e3 * median(attaching),
    }


def _cpu_seconds(run: Callable[[], Tensor]) -> float:
    """CPU time of the fastest of three runs: what disturbs can only add."""
    times: list[float] = []
    for _ in range(3):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    return min(times)


def map_memory(
    tokens: int = MAP_TOKENS, heads: int = MAP_HEADS, width: int = MAP_WIDTH
) -> dict[str, Any]:
    """Weigh the columns of the words against the whole map, for joint attention.

    Args:
        tokens: Image tokens; 77 text tokens come on top.
        heads: Attention heads.
        width: Width of a head.

    Returns:
        Bytes at the peak, and the largest difference of the two.
    """
    source = torch.Generator().manual_seed(0)
    whole = tokens + TEXT_TOKENS
    query = torch.randn(1, heads, whole, width, generator=source)
    key = torch.randn(1, heads, whole, width, generator=source)
    words = slice(0, TEXT_TOKENS)

    def by_columns() -> Tensor:
        return probability_columns(query, key, words)

    def explicitly() -> Tensor:
        scores = query @ key.transpose(-1, -2) * width**-0.5
        return torch.softmax(scores, dim=-1)[..., words].contiguous()

    columns, columns_bytes = peak_bytes(by_columns)
    explicit, explicit_bytes = peak_bytes(explicitly)
    return {
        "tokens": tokens,
        "text_tokens": TEXT_TOKENS,
        "heads": heads,
        "columns_bytes": columns_bytes,
        "explicit_bytes": explicit_bytes,
        "share": columns_bytes / explicit_bytes,
        "largest_difference": float((columns - explicit).abs().max()),
    }
