"""Rows that join the batch late equal rows that run from the first block, family by family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl import attach
from attnctl.engine.denoiser import DenoiserDriver
from attnctl.families import find_family
from tests.core.extra_row import Extra
from tests.core.test_video_kin_families import last_self
from tests.support.denoisers import DENOISERS
from tests.support.denoisers.entry import prediction

NAMES = [
    *(
        "lumina2",
        "z_image",
        "hidream",
        "hunyuan_image",
        "krea2",
        "flux3",
        "bria_fibo",
        "kandinsky3",
    ),
    *(
        "unet_3d",
        "i2vgen_xl",
        "stable_video",
        "latte",
        "allegro",
        "kandinsky5",
        "consisid",
        "cosmos",
    ),
]


def branches_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Names for the two rows of the inputs."""
    order = find_family(model).branches
    return order if len(order) == 2 else ("uncond", "cond")


@pytest.mark.parametrize("name", NAMES)
def test_an_added_row_without_a_perturbation_equals_its_own(name: str) -> None:
    extra, model = Extra(is_perturbed=False), DENOISERS[name].build()
    inputs = DENOISERS[name].inputs()
    with torch.no_grad():
        plain = prediction(model(**inputs))
        with attach(model, extra, branches=branches_of(model)):
            made = prediction(model(**inputs))
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)
    (call,) = extra.seen
    pair = call.get("cond", "perturbed"), call.get("cond")
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_that_joins_at_the_last_block_equals_one_that_runs_from_the_first(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = DENOISERS[name].build(), DENOISERS[name].inputs()
    where = last_self(model)

    def rows() -> Tensor:
        extra = Extra(where=where)
        with attach(model, extra, branches=branches_of(model)), torch.no_grad():
            model(**inputs)
        return extra.seen[0].prediction

    replayed = rows()
    monkeypatch.setattr(DenoiserDriver, "_replay", lambda driver: None)
    whole = rows()
    assert replayed.shape[0] == 3
    torch.testing.assert_close(replayed, whole, rtol=1e-4, atol=1e-5)
    own = branches_of(model).index("cond")
    assert (whole[2] - whole[own]).abs().max() > 1e-5
