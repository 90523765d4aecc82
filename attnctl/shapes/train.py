"""Train a shapes model: ``python -m attnctl.shapes.train shapes --out DIR --minutes 100``.

Models: ``shapes`` (Stable Diffusion's classes), ``shapes-mmdit`` (Stable Diffusion 3's) and
``shapes-motion`` (AnimateDiff's adapter on the bundled ``shapes``, which has no ``vae`` stage).
Stages: ``vae`` trains the autoencoder, ``denoiser`` encodes scenes and trains the denoiser with
its text encoder, ``export`` writes a diffusers folder from the moving averages; ``all`` does the
three. Each stage starts from what the one before left in DIR; ``--resume`` continues one that
was stopped, at any moment and in any way.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, multiprocessing

from attnctl.loading import load_pipeline
from attnctl.shapes.captions import CaptionSettings
from attnctl.shapes.export import DENOISERS, MOTION, export, load_state, trained_parts
from attnctl.shapes.latents import LatentCache, encode_scenes, standardise_latents
from attnctl.shapes.loop import Loop, LoopSettings, Team, write_atomically
from attnctl.shapes.mmdit import (
    TEXT_TOKENS,
    build_text_encoders,
    build_transformer,
)
from attnctl.shapes.model import (
    build_scheduler,
    build_unet,
    build_vae,
)
from attnctl.shapes.text import build_text_encoder, build_tokenizer
from attnctl.shapes.train_mmdit import FlowSettings, compile_parts, flow_loop
from attnctl.shapes.train_motion import (
    ClipCache,
    MotionSettings,
    encode_clips,
    motion_loop,
)
from attnctl.shapes.train_unet import UnetSettings, unet_loop
from attnctl.shapes.train_vae import VaeSettings, vae_loop
from attnctl.shapes.vocabulary import LARGE_VOCABULARY, SMALL_VOCABULARY
from attnctl.shapes.world import SceneBatch, WorldSettings

# Without these, glibc returns every large buffer to the system and faults it in again.
ALLOCATOR_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_NUM_THREADS": "1",
}
VAE_SHARE = 0.12
SCENE_NAMES = (
    "present", "colour", "shape", "x_px", "y_px", "radius_px", "angle", "paint", "background",
    "ground",
)  # fmt: skip


def _world(arguments: argparse.Namespace) -> WorldSettings:
    return WorldSettings(
        vocabulary=LARGE_VOCABULARY if arguments.vocabulary == "large" else SMALL_VOCABULARY
    )


def _start_worker(rank: int, arguments: argparse.Namespace, meeting: Path) -> Team:
    if arguments.device == "cpu":
        torch.set_num_threads(1)
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[rank % len(cores)]})
    return Team.join(rank, arguments.workers, meeting)


def _train_vae(rank: int, arguments: argparse.Namespace, meeting: Path, minutes: float) -> None:
    team = _start_worker(rank, arguments, meeting)
    torch.manual_seed(0)
    vae = build_vae().to(arguments.device)
    schedule = LoopSettings(minutes=minutes, learning_rate=1.5e-3, save_every=200)
    settings = VaeSettings(batch=arguments.batch)
    loop = vae_loop(vae, _world(arguments), settings, schedule, arguments.out / "vae", team)
    if arguments.resume:
        loop.resume()
    loop.run()
    team.leave()


def finish_vae(folder: Path, world: WorldSettings) -> AutoencoderKL:
    """Standardise the averaged autoencoder and save it as ``folder/vae/model``."""
    vae = build_vae()
    vae.load_state_dict(load_state(folder / "vae" / "latest.pt")["average"])
    sample = encode_scenes(vae.eval(), world, 1000, torch.Generator().manual_seed(5))
    standardise_latents(vae, sample)
    vae.save_pretrained(folder / "vae" / "model")
    return vae


def _encoded(
    arguments: argparse.Namespace, rank: int, encode: Callable[[int, torch.Generator], Any]
) -> tuple[SceneBatch, Tensor, Tensor]:
    """Scenes and latents of this worker: encoded, or loaded if an earlier run did it."""
    path = arguments.out / f"latents-{rank}.pt"
    if not path.exists():
        generator = torch.Generator().manual_seed(1000 + rank)
        made = encode(arguments.scenes // arguments.workers, generator)
        state = {name: getattr(made.scenes, name) for name in SCENE_NAMES}
        state |= {"mean": made.mean, "std": made.std}
        write_atomically(path, lambda to: torch.save(state, to))
    state = load_state(path)
    scenes = SceneBatch(_world(arguments), **{name: state[name] for name in SCENE_NAMES})
    return scenes, state["mean"], state["std"]


def _cache(arguments: argparse.Namespace, rank: int) -> LatentCache:
    def encode(count: int, generator: torch.Generator) -> LatentCache:
        vae = AutoencoderKL.from_pretrained(arguments.out / "vae" / "model").to(arguments.device)
        return encode_scenes(vae.eval(), _world(arguments), count, generator)

    return LatentCache(*_encoded(arguments, rank, encode))


def _train_denoiser(
    rank: int, arguments: argparse.Namespace, meeting: Path, minutes: float
) -> None:
    team = _start_worker(rank, arguments, meeting)
    schedule = LoopSettings(
        minutes=minutes, learning_rate=arguments.learning_rate, keep_minutes=arguments.keep_minutes
    )
    if arguments.model == MOTION:
        loop = _motion_training(rank, arguments, schedule, team)
    else:
        cache = _cache(arguments, rank)
        torch.manual_seed(0)
        captions = CaptionSettings(extra_share=arguments.extra_share)
        make = _unet_training if arguments.model == "shapes" else _flow_training
        loop = make(arguments, cache, captions, schedule, team)
    if not (arguments.resume and loop.resume()) and arguments.start:
        begin = load_pipeline(arguments.start, dtype=torch.float32, device=arguments.device)
        loop.start_from(trained_parts(arguments.model, begin).state_dict())
    loop.run()
    team.leave()


def _unet_training(
    arguments: argparse.Namespace,
    cache: LatentCache,
    captions: CaptionSettings,
    schedule: LoopSettings,
    team: Team,
) -> Loop:
    tokenizer = build_tokenizer()
    unet = build_unet(tuple(arguments.widths)).to(arguments.device)
    encoder = build_text_encoder(tokenizer).to(arguments.device)
    settings = UnetSettings(batch=arguments.batch, captions=captions)
    folder = arguments.out / DENOISERS["shapes"]
    return unet_loop(
        unet, encoder, tokenizer, build_scheduler(), cache, settings, schedule, folder, team
    )


def _flow_training(
    arguments: argparse.Namespace,
    cache: LatentCache,
    captions: CaptionSettings,
    schedule: LoopSettings,
    team: Team,
) -> Loop:
    tokenizer = build_tokenizer(TEXT_TOKENS)
    transformer = build_transformer().to(arguments.device)
    first, second = build_text_encoders(tokenizer)
    encoders = (first.to(arguments.device), second.to(arguments.device))
    settings = FlowSettings(batch=arguments.batch, captions=captions)
    folder = arguments.out / DENOISERS["shapes-mmdit"]
    if arguments.compile:
        compile_parts(transformer)
    return flow_loop(transformer, encoders, tokenizer, cache, settings, schedule, folder, team)


def _motion_training(
    rank: int, arguments: argparse.Namespace, schedule: LoopSettings, team: Team
) -> Loop:
    base = load_pipeline("shapes", dtype=torch.float32, device=arguments.device)
    settings = MotionSettings(batch=arguments.batch)

    def encode(count: int, generator: torch.Generator) -> ClipCache:
        return encode_clips(base.vae, settings.clips, count, generator)

    cache = ClipCache(*_encoded(arguments, rank, encode))
    torch.manual_seed(0)
    folder = arguments.out / DENOISERS[MOTION]
    return motion_loop(base, cache, settings, schedule, folder, team, is_compiled=arguments.compile)


def _spawn(
    worker: Callable[[int, argparse.Namespace, Path, float], None],
    arguments: argparse.Namespace,
    minutes: float,
) -> None:
    os.environ.update(ALLOCATOR_SETTINGS)
    meeting = arguments.out / f".meeting-{os.getpid()}-{time.time_ns()}"
    try:
        multiprocessing.spawn(worker, (arguments, meeting, minutes), nprocs=arguments.workers)
    finally:
        meeting.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m attnctl.shapes.train", description=__doc__)
    parser.add_argument("model", choices=list(DENOISERS), help="which model to train")
    parser.add_argument("--stage", choices=["vae", "denoiser", "export", "all"], default="all")
    parser.add_argument("--out", type=Path, required=True, help="training folder")
    parser.add_argument("--minutes", type=float, default=100, help="wall-clock budget")
    parser.add_argument("--resume", action="store_true", help="continue what was stopped")
    parser.add_argument("--start", help="name or folder of a model whose weights to begin from")
    parser.add_argument(
        "--compile", action="store_true", help="compile shapes-mmdit and shapes-motion"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=None, help="processes; 2 on a CPU")
    parser.add_argument("--batch", type=int, help="samples a step and worker: 16, or 2 clips")
    parser.add_argument(
        "--scenes", type=int, help="scenes that are encoded once: 60000; clips 4000"
    )
    parser.add_argument("--vocabulary", choices=["small", "large"], default="small")
    parser.add_argument("--widths", type=int, nargs=3, default=(64, 128, 128), help="of the UNet")
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--extra-share", type=float, default=CaptionSettings().extra_share)
    parser.add_argument("--keep-minutes", type=float, default=15, help="0 keeps no averages")
    parser.add_argument("--average", type=Path, help="kept average to export")
    parser.add_argument("--target", type=Path, help="folder for the exported pipeline")
    return parser


def main(words: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(words)
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.workers is None:
        arguments.workers = 2 if arguments.device == "cpu" else 1
    is_motion = arguments.model == MOTION
    if arguments.batch is None:
        arguments.batch = MotionSettings().batch if is_motion else UnetSettings().batch
    if arguments.scenes is None:
        arguments.scenes = 4000 if is_motion else 60_000
    if is_motion and arguments.stage == "vae":
        raise SystemExit(f"{MOTION} has the autoencoder of shapes; its stages: denoiser, export")
    whole = arguments.stage == "all" and not is_motion
    if arguments.stage == "vae" or whole:
        _spawn(_train_vae, arguments, arguments.minutes * (VAE_SHARE if whole else 1))
        finish_vae(arguments.out, _world(arguments))
    if arguments.stage in ("denoiser", "all"):
        _spawn(_train_denoiser, arguments, arguments.minutes * (1 - VAE_SHARE if whole else 1))
    if arguments.stage in ("export", "all"):
        target = arguments.target or arguments.out / "model"
        widths = tuple(arguments.widths)
        export(arguments.model, arguments.out, target, arguments.average, widths)
    return 0


if __name__ == "__main__":
    sys.exit(main())
