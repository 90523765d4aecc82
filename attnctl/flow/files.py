"""Flow in files: ``.npz`` for a clip, Middlebury ``.flo`` for one pair of frames or a folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnctl.errors import FlowError
from attnctl.files import new_file
from attnctl.flow.clip_flow import ClipFlow

FLO_MAGIC = 202021.25
MAX_VALUES = 2_000_000_000
"""Guard against a header that asks for more memory than any clip needs."""


def save_flow(flow: ClipFlow, path: str | os.PathLike[str]) -> Path:
    """Write a clip's flow as ``.npz``: arrays ``forward``, ``backward`` if there is one, ``cuts``.

    Raises:
        FlowError: the name does not end in ``.npz``.
        OSError: the file cannot be written; nothing is left under ``path``.
    """
    target = Path(path)
    if target.suffix.lower() != ".npz":
        raise FlowError(f"{str(target)!r} must end in .npz")
    arrays: dict[str, Any] = {"forward": flow.forward.cpu().numpy(), "cuts": np.array(flow.cuts)}
    if flow.backward is not None:
        arrays["backward"] = flow.backward.cpu().numpy()
    with new_file(target) as file:
        np.savez_compressed(file, **arrays)
    return target


def read_flow(path: str | os.PathLike[str]) -> ClipFlow:
    """Read a precomputed flow.

    Args:
        path: ``.npz`` with ``forward`` (and perhaps ``backward``, ``cuts``); one ``.flo`` file of a
            pair of frames; or a folder of ``.flo`` files, taken in the order of their names, with
            the way back in its folder ``backward``, if it has one.

    Raises:
        FlowError: there is no such file, it is damaged, or arrays are missing or misshapen.
    """
    source = Path(path)
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise FlowError(f"there is no flow file {str(source)!r}")
    if source.suffix.lower() == ".flo":
        return ClipFlow(read_flo(source)[None])
    if source.suffix.lower() == ".npz":
        return _read_npz(source)
    raise FlowError(f"{str(source)!r}: flow is read from .npz, .flo, or a folder of .flo files")


def read_flo(path: str | os.PathLike[str]) -> Tensor:
    """Read one Middlebury ``.flo`` file: ``(2, H, W)`` float32.

    Raises:
        FlowError: it is damaged.
    """
    with open(path, "rb") as file:
        magic = np.frombuffer(file.read(4), "<f4")
        sides = np.frombuffer(file.read(8), "<i4")
        if len(magic) != 1 or magic[0] != FLO_MAGIC or len(sides) != 2:
            raise FlowError(f"{str(path)!r} is no .flo file: its first bytes are not those of one")
        width, height = int(sides[0]), int(sides[1])
        if width < 1 or height < 1 or width * height * 2 > MAX_VALUES:
            raise FlowError(f"{str(path)!r} is damaged: it claims {width} x {height} pixels")
        values = np.frombuffer(file.read(width * height * 8), "<f4")
    if values.size != width * height * 2:
        raise FlowError(f"{str(path)!r} is cut off: {values.size} of {width * height * 2} values")
    field = values.reshape(height, width, 2).astype(np.float32)
    return torch.from_numpy(field).permute(2, 0, 1).contiguous()


def write_flo(flow: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write one pair's flow, ``(2, H, W)``, as a Middlebury ``.flo`` file."""
    if flow.dim() != 3 or flow.shape[0] != 2:
        raise FlowError(f"one .flo file holds (2, H, W); got {tuple(flow.shape)}")
    height, width = flow.shape[1:]
    with new_file(path) as file:
        file.write(np.array([FLO_MAGIC], "<f4").tobytes())
        file.write(np.array([width, height], "<i4").tobytes())
        file.write(flow.permute(1, 2, 0).contiguous().cpu().numpy().astype("<f4").tobytes())
    return Path(path)


def _read_folder(folder: Path) -> ClipFlow:
    forward = _read_all(folder)
    if forward is None:
        raise FlowError(f"{str(folder)!r} holds no .flo file")
    return ClipFlow(forward, _read_all(folder / "backward"))


def _read_all(folder: Path) -> Tensor | None:
    files = sorted(folder.glob("*.flo")) if folder.is_dir() else []
    if not files:
        return None
    fields = [read_flo(file) for file in files]
    if len({field.shape for field in fields}) > 1:
        raise FlowError(f"the .flo files in {str(folder)!r} have different sizes")
    return torch.stack(fields)


def _read_npz(source: Path) -> ClipFlow:
    try:
        with np.load(source, allow_pickle=False) as file:
            names = set(file.files)
            arrays = {n: np.array(file[n]) for n in ("forward", "backward", "cuts") if n in names}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise FlowError(f"{str(source)!r} is damaged: {error}; estimate the flow again") from None
    except Exception as error:  # zipfile.BadZipFile, zlib.error: whatever a broken archive gives
        raise FlowError(f"{str(source)!r} is no whole .npz file: {error}") from None
    if "forward" not in arrays:
        raise FlowError(
            f"{str(source)!r} has the arrays {sorted(names)}; it needs 'forward', of the shape"
            " (frames - 1, 2, height, width)"
        )
    back = arrays.get("backward")
    return ClipFlow(
        torch.from_numpy(arrays["forward"]).float(),
        None if back is None else torch.from_numpy(back).float(),
        tuple(int(t) for t in arrays.get("cuts", np.array([], dtype=int))),
    )
