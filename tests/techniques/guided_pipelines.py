"""Tiny pipelines with two guidance branches: how tests call, steer and compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

import attnctl
from tests.support.guidance_reference import Formula, generate_by
from tests.support.pipelines import generate

STEPS = 3
SCALE = 5.0
EXACT = 5e-6  # of the largest latent


@dataclass(frozen=True)
class Guided:
    """How one pipeline is called with guidance, and attention modules in it that tests perturb.

    Attributes:
        where: Selector of the modules.
        paths: The modules.
        options: Arguments of the pipeline.
        branches: Order in one batch; one branch if the denoiser is called once a branch.
        scales: Guidance scale of each step.
    """

    where: str
    paths: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": SCALE})
    branches: tuple[str, ...] = ("uncond", "cond")
    scales: tuple[float, ...] = (SCALE,) * STEPS


MID = "mid_block.attentions.0.transformer_blocks"
TRUE_GUIDANCE = {"true_cfg_scale": SCALE, "negative_prompt": "a dog"}
TWO_SCALES = {"guidance_scale": SCALE, "guidance_scale_2": 3.0}

GUIDED = {
    "sd1": Guided("mid:self", (f"{MID}.0.attn1",)),
    "sdxl": Guided("mid:self", (f"{MID}.0.attn1", f"{MID}.1.attn1")),
    "sd3": Guided("layers=1,joint", ("transformer_blocks.1.attn",)),
    "pixart_sigma": Guided("layers=1,self", ("transformer_blocks.1.attn1",)),
    "cogvideox": Guided("layers=1,joint", ("transformer_blocks.1.attn1",)),
    "flux": Guided("layers=1,joint", ("transformer_blocks.1.attn",), TRUE_GUIDANCE, ("cond",)),
    "wan": Guided("layers=1,self", ("blocks.1.attn1",), branches=("cond",)),
    "wan22": Guided("layers=1,self", ("blocks.1.attn1",), TWO_SCALES, ("cond",), (SCALE, 3.0, 3.0)),
}
SEPARATE = tuple(name for name, one in GUIDED.items() if len(one.branches) == 1)


def run(pipe: Any, name: str, **changes: Any) -> Tensor:
    """Run a pipeline of ``GUIDED`` as it is."""
    return generate(pipe, **{"steps": STEPS, **GUIDED[name].options, **changes})


def run_by(pipe: Any, name: str, formula: Formula, *, perturb: bool = False) -> Tensor:
    """Run it with another formula in place of its guidance."""
    one = GUIDED[name]
    paths = one.paths if perturb else ()
    return generate_by(pipe, formula, one.branches, paths, steps=STEPS, **one.options)


def classifier_free(name: str) -> Formula:
    """The formula that the pipeline has by itself."""
    scales = GUIDED[name].scales
    return lambda step, got: got["uncond"] + scales[step] * (got["cond"] - got["uncond"])


def away(scale: float, got: Mapping[str, Tensor]) -> Tensor:
    """Guidance away from the perturbed prediction."""
    return scale * (got["cond"] - got["perturbed"])


def steered(pipe: Any, techniques: Any, **changes: Any) -> Tensor:
    """Run any pipeline with techniques attached."""
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


def steered_like(pipe: Any, name: str, techniques: Any) -> Tensor:
    """Run a pipeline of ``GUIDED`` with techniques attached."""
    with attnctl.attach(pipe, techniques):
        return run(pipe, name)


def assert_close(ours: Tensor, theirs: Tensor, other: Tensor) -> None:
    """Equal up to rounding, where the effect is far above it."""
    size = float(theirs.abs().max())
    assert (theirs - other).abs().max() > 50 * EXACT * size
    assert (ours - theirs).abs().max() < EXACT * size
