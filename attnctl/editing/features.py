"""Features that one run records and another one uses, such as those of an inversion.

A store belongs to the caller and outlives runs. What is in it is found by the exact timestep, the
path of an attention site or module, and what it is; a store that another model, scheduler or
latent shape filled is refused before the first step.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from attnctl.errors import FeatureError
from attnctl.sites import model_config, unwrapped

Key = tuple[float, str, str]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What two runs must share so that features of one fit the other.

    Attributes:
        denoisers: Class and short hash of the configuration of each denoiser.
        scheduler: Class of the scheduler; an inversion names the sampler that it inverts.
        prediction: ``"epsilon"``, ``"v_prediction"``, ``"sample"`` or ``"flow"``.
        latents: Shape of the denoiser's latents argument without its batch axis; frames are in it.
        items: Pictures, clips, or frames that stand in the batch axis.
    """

    denoisers: tuple[str, ...]
    scheduler: str
    prediction: str
    latents: tuple[int, ...]
    items: int

    @classmethod
    def of_run(
        cls, models: Sequence[nn.Module], scheduler: Any, latents: Sequence[int], items: int
    ) -> "Fingerprint":
        """Describe a run.

        Args:
            models: The denoisers.
            scheduler: The scheduler that runs, ``None`` if there is none.
            latents: Shape of the latents argument without its batch axis.
            items: Pictures, clips or frames.
        """
        sampler = getattr(scheduler, "sampler", None) or scheduler
        name = "" if sampler is None else type(sampler).__name__
        shape = tuple(int(side) for side in latents)
        return cls(tuple(map(_name_of, models)), name, prediction_type(sampler), shape, items)

    def refuse_other(self, now: "Fingerprint", *, same_items: bool = False) -> None:
        """Refuse a run that differs from this one.

        Args:
            now: The run that wants the features.
            same_items: Whether the number of items must be equal too.

        Raises:
            FeatureError: naming what differs.
        """
        names = [f.name for f in fields(self) if same_items or f.name != "items"]
        other = [name for name in names if getattr(self, name) != getattr(now, name)]
        if other:
            told = "; ".join(f"{n}: {getattr(self, n)} then, {getattr(now, n)} now" for n in other)
            raise FeatureError(
                f"these features were recorded in a run that does not fit this one ({told}); "
                "record them again with this pipeline, scheduler and size"
            )


class FeatureStore:
    """Tensors by timestep, path and name, kept by the caller from run to run.

    Args:
        offload: Keep them in the memory of the CPU.
        dtype: Keep them in this dtype; ``None`` as they come.
    """

    def __init__(self, *, offload: bool = False, dtype: torch.dtype | None = None) -> None:
        self.offload, self.dtype = offload, dtype
        self.fingerprint: Fingerprint | None = None
        self._kept: dict[Key, Tensor] = {}

    def open(self, fingerprint: Fingerprint) -> None:
        """Let a run record into the store.

        Raises:
            FeatureError: the store holds features of a run that does not fit.
        """
        if self.fingerprint is not None and self._kept:
            self.fingerprint.refuse_other(fingerprint, same_items=True)
        self.fingerprint = fingerprint

    def check(self, fingerprint: Fingerprint, *, same_items: bool = False) -> None:
        """Refuse a run that these features do not fit; call it in ``Technique.begin``.

        Raises:
            FeatureError: the store is empty, or another model, scheduler or shape filled it.
        """
        if self.fingerprint is None or not self._kept:
            raise FeatureError(
                "the feature store is empty; fill it first, for example with "
                "attnctl.inversion.invert(..., techniques=[AttentionRecorder(store)])"
            )
        self.fingerprint.refuse_other(fingerprint, same_items=same_items)

    def put(self, timestep: float, path: str, what: str, value: Tensor) -> None:
        """Keep a tensor, without its graph, in place of an earlier one.

        Args:
            timestep: As :attr:`attnctl.calls.Step.timestep` has it.
            path: Of the attention site or module.
            what: ``"query"``, ``"key"``, ``"value"``, ``"out"``, ``"output"``, or a name of yours.
            value: Any shape; axis 0 is rows, or rows times frames.
        """
        device = "cpu" if self.offload else value.device
        kept = value.detach().to(device=device, dtype=self.dtype or value.dtype)
        if kept.untyped_storage().nbytes() > kept.nbytes:
            kept = kept.clone()  # a view would keep the whole of what it looks at
        self._kept[(float(timestep), path, what)] = kept

    def get(self, timestep: float, path: str, what: str, *, like: Tensor | None = None) -> Tensor:
        """Take a tensor out, on the device and in the dtype of ``like``.

        Raises:
            FeatureError: nothing is kept for exactly this timestep, path and name.
        """
        found = self._kept.get((float(timestep), path, what))
        if found is None:
            raise FeatureError(self._explain_missing(float(timestep), path, what))
        return found if like is None else found.to(like)

    def has(self, timestep: float, path: str, what: str) -> bool:
        """Whether something is kept for exactly this timestep, path and name."""
        return (float(timestep), path, what) in self._kept

    def clear(self) -> None:
        """Forget everything, so that another model may fill the store."""
        self._kept.clear()
        self.fingerprint = None

    @property
    def timesteps(self) -> tuple[float, ...]:
        """Timesteps that something is kept for, from noise to clean."""
        return tuple(sorted({timestep for timestep, _, _ in self._kept}, reverse=True))

    @property
    def paths(self) -> tuple[str, ...]:
        """Sites and modules that something is kept of, in the order of their first record."""
        return tuple(dict.fromkeys(path for _, path, _ in self._kept))

    @property
    def nbytes(self) -> int:
        """Memory that the tensors take, in bytes."""
        return sum(tensor.nbytes for tensor in self._kept.values())

    def bytes_by_device(self) -> Mapping[str, int]:
        """Memory that the tensors take on each device, in bytes."""
        taken: dict[str, int] = {}
        for tensor in self._kept.values():
            taken[str(tensor.device)] = taken.get(str(tensor.device), 0) + tensor.nbytes
        return taken

    def __len__(self) -> int:
        """Number of tensors."""
        return len(self._kept)

    def __repr__(self) -> str:
        places = ", ".join(f"{n / 2**20:.1f} MiB on {d}" for d, n in self.bytes_by_device().items())
        return (
            f"<FeatureStore: {len(self)} tensors, {len(self.timesteps)} timesteps, "
            f"{len(self.paths)} paths{', ' if places else ''}{places}>"
        )

    def _explain_missing(self, timestep: float, path: str, what: str) -> str:
        start = f"no feature {what!r} of {path!r} at timestep {timestep:g}: "
        if path not in self.paths:
            return start + f"nothing was recorded there; recorded are {_some(self.paths)}"
        if timestep not in self.timesteps:
            return start + (
                f"recorded are {_some(self.timesteps)}; run with the scheduler and the number of "
                "steps of the recording"
            )
        return start + f"kept of it are {_some(sorted({w for _, p, w in self._kept if p == path}))}"


def prediction_type(scheduler: Any) -> str:
    """What the denoiser of a scheduler predicts; ``"flow"`` for flow matching, ``""`` if unknown.

    diffusers' flow-matching schedulers have no ``prediction_type``; newer multistep ones call it
    ``"flow_prediction"``.
    """
    if scheduler is None:
        return ""
    if "FlowMatch" in type(scheduler).__name__:
        return "flow"
    told = str(getattr(scheduler.config, "prediction_type", ""))
    return "flow" if told == "flow_prediction" else told


def _name_of(model: nn.Module) -> str:
    """Class of a denoiser, and a hash of the part of its configuration that decides its shapes."""
    config = {k: v for k, v in dict(model_config(model)).items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return f"{type(unwrapped(model)).__name__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _some(values: Sequence[Any]) -> str:
    """The first values of a list, for a message."""
    shown = [f"{v:g}" if isinstance(v, float) else repr(v) for v in values[:6]]
    return ", ".join(shown) + (f" and {len(values) - 6} more" if len(values) > 6 else "")
