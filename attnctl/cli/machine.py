"""``attnctl doctor``: what this machine and this installation offer."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import typer

from attnctl.cli import options
from attnctl.cli.tables import print_json, print_table

_NEEDED = ("attnctl", "torch", "diffusers", "transformers", "accelerate", "safetensors", "pydantic")
_OPTIONAL = {
    "gradio": "pip install 'attnctl[ui]'",
    "av": "pip install 'attnctl[video]'",
    "opencv-python-headless": "pip install 'attnctl[video]'",
    "triton": "comes with torch for CUDA; to test its kernels without: pip install triton",
    "xformers": "pip install 'attnctl[xformers]'",
    "torchmetrics": "pip install 'attnctl[metrics]'",
    "matplotlib": "pip install 'attnctl[plots]'",
    "peft": "needed for LoRA: pip install peft",
}


def doctor(as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show versions, devices, kernels, and what is missing and why."""
    from attnctl.cli.listing import kernel_rows

    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in _NEEDED},
        "optional": {name: _version(name) for name in _OPTIONAL},
        "devices": _devices(),
        "kernels": kernel_rows(),
    }
    if as_json:
        print_json(found)
        return
    typer.echo(f"Python {found['python']} on {found['system']}\n")
    print_table(("package", "version"), [(n, _version(n) or "MISSING") for n in _NEEDED])
    typer.echo("")
    optional = [(n, _version(n) or "no", how) for n, how in _OPTIONAL.items()]
    rows = [(n, v, "" if v != "no" else how) for n, v, how in optional]
    print_table(("optional", "version", "how to get it"), rows)
    typer.echo("")
    print_table(("device", "what it is"), [(d["device"], d["name"]) for d in _devices()])
    typer.echo("")
    kernels = [(k["kernel"], k["missing"] or "yes") for k in kernel_rows()]
    print_table(("kernel", "usable here"), kernels)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    ]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        name = f"{torch.cuda.get_device_name(index)}, {memory}"
        devices.append({"device": f"cuda:{index}", "name": name})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices
