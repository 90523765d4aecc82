"""The tiny denoisers keep what they promise: same seed, same output, and attention that matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

import attnctl
from tests.support.denoisers import DENOISERS, family_names

LEAST_EFFECT = 1e-3  # of reversed attention results on the output, relative to its largest value


def attention_modules(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "processor")]


def reverse_result(module: nn.Module, inputs: Any, result: Any) -> Any:
    """Forward hook: hand every attention result to the wrong tokens."""
    if isinstance(result, tuple):
        return tuple(reverse_result(module, inputs, part) for part in result)
    return result.flip(1) if isinstance(result, Tensor) else result


@pytest.mark.parametrize("name", DENOISERS)
def test_equal_seeds_give_equal_models_and_equal_finite_outputs(name: str) -> None:
    entry = DENOISERS[name]
    model, twin = entry.build(), entry.build()
    first = entry.run(model)

    assert first.isfinite().all()
    assert torch.equal(first, entry.run(model))
    assert torch.equal(first, entry.run(twin))


@pytest.mark.parametrize("name", DENOISERS)
def test_attention_and_inputs_show_in_the_output(name: str) -> None:
    entry = DENOISERS[name]
    model = entry.build()
    plain = entry.run(model)
    other = entry.run(model, seed=1)
    for module in attention_modules(model):
        module.register_forward_hook(reverse_result)
    changed = entry.run(model)

    assert not torch.equal(plain, other)
    assert (changed - plain).abs().max() > LEAST_EFFECT * plain.abs().max()


def test_building_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    DENOISERS["sd1"].build()
    DENOISERS["sd1"].inputs()

    assert torch.equal(before, torch.get_rng_state())


def test_every_family_has_an_entry() -> None:
    families = {entry.family for entry in DENOISERS.values()} - {None}

    files = (Path(attnctl.__file__).parent / "families").glob("[a-z]*.py")
    assert families == {file.stem for file in files}
    assert {"sd1", "sd2", "sdxl"} <= set(family_names("unet"))


def test_every_model_class_is_a_public_name_of_diffusers() -> None:
    assert all(hasattr(diffusers, entry.model_class) for entry in DENOISERS.values())
