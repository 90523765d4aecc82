"""A denoiser's arguments by name, and the latents among them."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from attnctl.engine.rows import as_batch
from attnctl.engine.run import Scaling
from attnctl.errors import UnsupportedModelError
from attnctl.families import Family
from attnctl.sites import model_config, unwrapped


class Arguments:
    """How one denoiser is called: names, and where its latents are."""

    def __init__(self, model: nn.Module, family: Family) -> None:
        self._model, self._family = model, family
        self._signature = inspect.signature(type(unwrapped(model)).forward)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one call by name."""
        inputs = named_arguments(self._signature, self._model, args, kwargs)
        lists = {name: as_batch(inputs[name]) for name in self._family.listed & inputs.keys()}
        layers = {name: list(inputs[name]) for name in self._family.layered & inputs.keys()}
        return inputs | lists | layers

    def latents_name(self, inputs: Mapping[str, Any]) -> str:
        """Name of the argument that carries the latents; the first tensors of an unknown model."""
        for name in (self._family.latents, "sample"):
            if name in inputs:
                return name
        return next((n for n, v in inputs.items() if isinstance(v, Tensor | list)), "")

    def own_latents(
        self, scaling: Scaling | None, inputs: Mapping[str, Any], items: int
    ) -> tuple[Tensor, int]:
        """Unscaled latents ``(items, ...)`` of a call, and the number of their channels."""
        axis = self._family.channels_axis
        if scaling is not None and scaling.sample.shape[0] >= items:
            return scaling.sample[:items], scaling.sample.shape[axis]
        given = inputs[self.latents_name(inputs)]
        if not isinstance(given, Tensor):
            raise UnsupportedModelError(
                f"{type(unwrapped(self._model)).__name__} takes its latents as a "
                f"{type(given).__name__}, not as one batch; techniques that edit inputs, latents "
                "or predictions, or add rows, are not available for it"
            )
        channels = given.shape[axis]
        config = model_config(self._model)
        out = config.get("out_channels") if hasattr(config, "get") else None
        if isinstance(out, int) and self._family.is_known:
            is_packed = given.ndim == 3  # a token has the channels of its whole patch
            channels = min(channels, out * config.get("patch_size", 1) ** 2 if is_packed else out)
        return given.narrow(axis, 0, channels)[:items], channels

    def with_latents(
        self, scaling: Scaling | None, inputs: Mapping[str, Any], latents: Tensor, repeats: int
    ) -> Tensor:
        """The latents argument with other latents in it, scaled and repeated for each branch."""
        axis, given = self._family.channels_axis, inputs[self.latents_name(inputs)]
        scaled = latents if scaling is None else scaling.apply(latents)
        scaled = torch.cat([scaled.to(given.dtype)] * repeats) if repeats > 1 else scaled.to(given)
        rest = given.shape[axis] - scaled.shape[axis]
        if rest == 0:
            return scaled
        return torch.cat([scaled, given.narrow(axis, scaled.shape[axis], rest)], dim=axis)


def named_arguments(
    signature: inspect.Signature,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> dict[str, Any]:
    """The arguments of one call of a module's ``forward`` by name, without the module."""
    bound = signature.bind(module, *args, **kwargs)
    inputs = dict(bound.arguments)
    inputs.pop(next(iter(inputs)))
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            inputs.update(inputs.pop(name, {}))
    return inputs
