"""Settings of the studio: what may be used, where it listens, and how much it accepts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from attnctl.cli.order import Machine
from attnctl.errors import SettingError
from attnctl.loading import ADAPTED, BUNDLED
from attnctl.shapes.bundled import MODELS

BUNDLED_MODELS = tuple(name for name in BUNDLED if (MODELS / name).is_dir())
"""Models of the package whose weights are in this installation."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one visitor may ask for.

    Attributes:
        waiting: Jobs that wait for their turn, of all visitors together.
        upload_bytes: Size of a dropped file, and of any other request.
        pictures: Pictures of one run.
        steps: Denoising steps.
        side_px: Width and height, in pixels.
        prompt_letters: Letters of a prompt.
        techniques: Techniques in one stack.
        number: Largest size of any number in a technique's settings.
        frames: Frames of a clip that are edited or made.
        chunk: Frames that are edited together.
        clip_pixels: Pixels of all frames of an edited clip together, as large as the file has it.
        file_frames: Frames of a dropped file, of which a clip may be a part.
        file_seconds: How long a dropped file lasts.
        feature_bytes: Memory for what an edit takes over from the clip.
    """

    waiting: int = 16
    upload_bytes: int = 20 * 2**20
    pictures: int = 16
    steps: int = 200
    side_px: int = 2048
    prompt_letters: int = 2000
    techniques: int = 12
    number: float = 1e6
    frames: int = 240
    chunk: int = 32
    clip_pixels: int = 2**27
    file_frames: int = 1200
    file_seconds: float = 600.0
    feature_bytes: int = 16 * 2**30


@dataclass(frozen=True, slots=True)
class StudioSettings:
    """How the studio runs.

    Attributes:
        models: Models that visitors can choose from; nothing else is loaded.
        out: The one folder that pictures are saved in.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        share: Whether to open a public link through Gradio's servers.
        users: Names and passwords of those who may come in; empty lets everybody in.
        presets: Folder with more recipes to start from.
        machine: Device, number format, offload and kernel.
        limits: How much is accepted.

    Raises:
        SettingError: others than this computer's users could come in without a password.
    """

    models: tuple[str, ...] = BUNDLED_MODELS
    out: Path = Path("studio-out")
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    users: tuple[tuple[str, str], ...] = ()
    presets: Path | None = None
    machine: Machine = field(default_factory=Machine)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not self.models:
            raise SettingError("no model is offered; name at least one with --model")
        if not 0 <= self.port <= 65535:
            raise SettingError(f"port {self.port} is outside 0 to 65535")
        for name, password in self.users:
            if not name or not password:
                raise SettingError("a user needs a name and a password: --auth NAME:PASSWORD")
        if self.users:
            return
        if self.share:
            raise SettingError("--share opens the page to the internet; add --auth NAME:PASSWORD")
        if not is_loopback(self.host):
            raise SettingError(
                f"host {self.host!r} can be reached from other computers; add --auth NAME:PASSWORD,"
                " or leave --host out"
            )

    @property
    def clip_models(self) -> tuple[str, ...]:
        """Models that are known to make clips from words, and no pictures."""
        return tuple(model for model in self.models if model in ADAPTED)

    @property
    def picture_models(self) -> tuple[str, ...]:
        """The others; all models if there are none."""
        others = tuple(model for model in self.models if model not in ADAPTED)
        return others or self.models


def is_loopback(host: str) -> bool:
    """Whether only this computer reaches a host name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
