"""Techniques that replace the guidance formula, and pipelines where that cannot be exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

import attnctl
from attnctl import APG, SoftPAG, Technique
from attnctl.calls import PredictionCall
from attnctl.errors import AttnctlError, UnsupportedModelError
from tests.support.pipelines import build, generate
from tests.techniques.guided_pipelines import assert_close, steered

# --- replacing the formula -------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed(Technique):
    """Guides by a scale of its own."""

    name: ClassVar[str] = "fixed"
    claims: ClassVar[frozenset[str]] = frozenset({"guidance"})
    scale: float = 4.0

    def edit_prediction(self, call: PredictionCall) -> None:
        cond, uncond = call.get("cond").float(), call.get("uncond").float()
        call.own(uncond + self.scale * (cond - uncond))


@dataclass(frozen=True)
class Unclaimed(Fixed):
    """The same, without saying so."""

    name: ClassVar[str] = "unclaimed"
    claims: ClassVar[frozenset[str]] = frozenset()


@pytest.mark.parametrize("name", ["sd1", "sd3", "wan"])
def test_a_formula_of_our_own_does_not_depend_on_the_pipelines_scale(name: str) -> None:
    pipe = build(name)
    small, large = (steered(pipe, Fixed(), guidance_scale=s) for s in (1.5, 9.0))
    own = generate(pipe, guidance_scale=4.0)
    assert_close(small, own, generate(pipe, guidance_scale=1.5))
    assert_close(large, own, generate(pipe, guidance_scale=9.0))
    if name != "wan":  # batched: the pipeline gets the same rows whatever its scale
        assert torch.equal(small, large)


def test_a_formula_of_our_own_passes_the_pipelines_rescaling() -> None:
    pipe = build("sd1")
    ours = steered(pipe, Fixed(), guidance_scale=9.0, guidance_rescale=0.7)
    theirs = generate(pipe, guidance_scale=4.0, guidance_rescale=0.7)
    assert_close(ours, theirs, generate(pipe, guidance_scale=9.0, guidance_rescale=0.7))


def test_replacing_the_formula_needs_the_claim() -> None:
    with pytest.raises(AttnctlError, match="add 'guidance' to its claims"):
        steered(build("sd1"), Unclaimed())


# --- what cannot be exact --------------------------------------------------------------------


@pytest.fixture
def renormalising() -> Any:
    """Lumina 2, which brings the norm of its guided prediction back to that of ``cond``."""
    return build("lumina2")


def test_a_renormalising_pipeline_gets_the_term_and_a_warning(renormalising: Any) -> None:
    plain = generate(renormalising)
    with attnctl.attach(renormalising, SoftPAG(where="layers=1")) as session:
        out = generate(renormalising)
    assert not torch.equal(out, plain)
    warnings = session.report().warnings
    assert len([text for text in warnings if "the norm includes the added term" in text]) == 1


@pytest.mark.parametrize("technique", [APG(), SoftPAG(rescale=0.5, where="layers=1")])
def test_a_renormalising_pipeline_refuses_other_formulas(
    renormalising: Any, technique: Technique
) -> None:
    with pytest.raises(UnsupportedModelError, match="renormalises"):
        steered(renormalising, technique)


class Latents(torch.nn.Module):
    """A denoiser that takes a list of pictures, with one attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention(8, heads=2, dim_head=4)

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor]]:
        return ([self.attn1(one[None])[0] for one in x],)


@pytest.mark.parametrize("technique", [APG(), SoftPAG(where="layers=0")])
def test_a_denoiser_of_lists_is_refused_with_the_reason(technique: Technique) -> None:
    model = Latents()
    with (
        attnctl.attach(model, technique),
        pytest.raises(UnsupportedModelError, match="Latents takes its latents as a list"),
    ):
        model([torch.randn(6, 8)])


@pytest.mark.parametrize("technique", [SoftPAG(scale=0, rescale=0.7), APG(steps="5-9")])
def test_off_is_identical_and_costs_no_forward(technique: Technique) -> None:
    pipe, calls = build("sd1"), list[int]()
    plain = generate(pipe, guidance_rescale=0.3)
    handle = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    conv = pipe.unet.conv_in.register_forward_hook(lambda _, args, out: calls.append(len(out)))
    assert torch.equal(steered(pipe, technique, guidance_rescale=0.3), plain)
    handle.remove()
    conv.remove()
    assert calls == [2, 1, 2, 1]
