"""What a measurement ran on, without anything that names the machine."""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnctl.imaging import scheduler_record, versions


def machine_record(device: str = "cpu") -> dict[str, Any]:
    """Processor, threads, versions: what decides about times and about a picture's last bits."""
    name = _processor() if device == "cpu" else torch.cuda.get_device_name(device)
    return {
        "device": device,
        "name": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def fingerprint(pipe: Any) -> str:
    """Hash of every weight of a pipeline: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part, model in sorted(pipe.components.items()):
        if isinstance(model, nn.Module):
            for name, value in sorted(model.state_dict().items()):
                plain = value.detach().cpu().contiguous()
                digest.update(f"{part}.{name}:{plain.dtype}:{tuple(plain.shape)}".encode())
                digest.update(plain.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def model_record(pipe: Any) -> dict[str, Any]:
    """What of a pipeline decides about its pictures, as plain values."""
    return {
        "pipeline": type(pipe).__name__,
        "dtype": str(pipe.dtype).removeprefix("torch."),
        "device": pipe.device.type,
        "weights": fingerprint(pipe),
        "scheduler": scheduler_record(pipe.scheduler),
    }


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpus.exists():
        for line in cpus.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
