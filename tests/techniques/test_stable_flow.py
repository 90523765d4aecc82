"""Stable Flow on tiny FLUX and SD3: image tokens of vital layers, text, branches, refusals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Recipe, StableFlow, Technique
from attnctl.errors import (
    ConflictError,
    LayerNotFoundError,
    RecipeError,
    SettingError,
    UnsupportedModelError,
)
from attnctl.sites import Site
from attnctl.vital_layers import VitalLayers, known_layers
from attnctl.vital_layers.layers import FLUX
from tests.support.pipelines import build, generate
from tests.techniques.paired_runs import SOURCE, TARGET, both, noise

LAYERS = {"flux": (0, 1, 2, 3), "flux_dev": (0, 2), "sd3": (0, 1, 2), "sd35": (0, 1)}


@pytest.mark.parametrize("name", LAYERS)
def test_the_target_changes_and_the_source_does_not_notice(name: str) -> None:
    pipe = build(name)
    alone, edited = both(pipe), both(pipe, StableFlow(LAYERS[name]))
    assert torch.equal(edited[0], alone[0])
    assert torch.isfinite(edited).all()
    assert (edited[1] - alone[1]).abs().max() > 1e-5


@pytest.mark.parametrize("name", ["flux", "sd3"])
@pytest.mark.parametrize(
    "technique",
    [StableFlow(()), StableFlow([0], steps="9-"), StableFlow([0], steps=attnctl.ramp(0.0, 0.0))],
    ids=["no layers", "window behind the run", "strength 0"],
)
def test_off_is_two_plain_rows_bit_for_bit(name: str, technique: StableFlow) -> None:
    pipe = build(name)
    assert torch.equal(both(pipe, technique), both(pipe))


@pytest.mark.parametrize("name", LAYERS)
def test_equal_prompts_give_equal_pictures_bit_for_bit(name: str) -> None:
    edited = both(build(name), StableFlow(LAYERS[name]), target=SOURCE)
    assert torch.equal(edited[1], edited[0])


@dataclass(frozen=True)
class Watch(Technique):
    """Keeps query, key and value of a layer as the kernel gets them."""

    name: ClassVar[str] = "watch"
    seen: list[tuple[Tensor, ...]] = field(default_factory=list[tuple[Tensor, ...]], compare=False)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        self.seen.append((call.query, call.key, call.value))
        return out


@pytest.mark.parametrize(("name", "text"), [("flux", 16), ("flux", 7), ("sd3", 93)])
def test_image_tokens_alone_are_copied_and_queries_stay(name: str, text: int) -> None:
    pipe = build(name)
    image = slice(text, None) if name == "flux" else slice(0, 64)
    words = slice(0, text) if name == "flux" else slice(64, None)
    length = {"max_sequence_length": text} if name == "flux" else {}
    usual, edited = Watch(where="layers=0"), Watch(where="layers=0")
    both(pipe, usual, steps=1, **length)
    both(pipe, StableFlow([0]), edited, steps=1, **length)
    own, given = usual.seen[0], edited.seen[0]
    assert given[1].shape[2] == 64 + text
    assert torch.equal(given[0], own[0])
    for plain, shared in zip(own[1:], given[1:], strict=True):
        rows = len(plain)
        source, target = range(0, rows, 2), range(1, rows, 2)
        for at, to in zip(source, target, strict=True):
            assert torch.equal(shared[at], plain[at])
            assert torch.equal(shared[to][:, image], plain[at][:, image])
            assert torch.equal(shared[to][:, words], plain[to][:, words])
        assert not torch.equal(plain[rows - 1][:, words], plain[rows - 2][:, words])


def test_copies_behind_norm_and_rotation_equal_copies_of_the_projections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("flux")
    ours = both(pipe, StableFlow([0]))
    attention = pipe.transformer.transformer_blocks[0].attn

    def copied(_module: Any, _args: Any, out: Tensor) -> Tensor:
        return torch.cat([out[:1], out[:1]])

    hooks = [part.register_forward_hook(copied) for part in (attention.to_k, attention.to_v)]
    theirs = both(pipe)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert not torch.allclose(ours, both(pipe), atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_each_branch_takes_from_its_own(name: str) -> None:
    pipe = build(name)
    more: dict[str, Any] = {}
    if name == "flux":
        more = {"negative_prompt": ["a red dog", "a photo"], "true_cfg_scale": 3.0}
    alone, edited = both(pipe, **more), both(pipe, StableFlow([0]), **more)
    assert torch.equal(edited[0], alone[0])
    assert (edited[1] - alone[1]).abs().max() > 1e-5


def test_several_edits_equal_separate_runs() -> None:
    pipe = build("flux")
    targets = [TARGET, "a red photo"]
    together = both(pipe, StableFlow([0, 3], target="1+2"), target=targets)
    for place, target in enumerate(targets, 1):
        alone = both(pipe, StableFlow([0, 3]), target=target)
        assert torch.allclose(together[place], alone[1], atol=1e-5)


def test_heads_can_be_chosen_instead_of_layers() -> None:
    pipe = build("flux")
    whole = both(pipe, StableFlow([0]))
    assert torch.equal(both(pipe, StableFlow(where="joint,layers=0")), whole)
    one = both(pipe, StableFlow(where="joint,layers=0,heads=1"))
    assert not torch.equal(one[1], whole[1])


def test_a_ramp_lies_between_off_and_on() -> None:
    pipe = build("sd3")
    off, on = both(pipe), both(pipe, StableFlow([0]))
    half = both(pipe, StableFlow([0], steps=attnctl.ramp(0.5, 0.5)))
    assert (half - off).abs().max() < (on - off).abs().max()
    assert not torch.equal(half, off)


def test_layers_are_kept_by_recipes() -> None:
    made = StableFlow([0, 2])
    assert made.settings()["layers"] == [0, 2]
    recipe = Recipe.from_dict(
        {"prompt": "a cat", "techniques": [{"stable-flow": made.settings()}]}, name=""
    )
    (again,) = recipe.build_techniques()
    assert again.settings() == made.settings()


def test_runs_and_models_that_do_not_fit_are_refused_before_the_first_step() -> None:
    pipe = build("flux")
    entered: list[int] = []
    hook = pipe.transformer.x_embedder.register_forward_hook(lambda *_: entered.append(1))
    with attnctl.attach(pipe, [StableFlow([0])]), pytest.raises(SettingError, match="one picture"):
        generate(pipe, ["a cat"], latents=noise(pipe, 1))
    with pytest.raises(UnsupportedModelError, match="no vital layers are known for this model"):
        attnctl.attach(pipe, [StableFlow()])
    with pytest.raises(LayerNotFoundError, match="no joint layer 4; this model has layers 0 to 3"):
        attnctl.attach(pipe, [StableFlow([4])])
    with pytest.raises(UnsupportedModelError, match="with 57 joint layers of 24 heads; this model"):
        attnctl.attach(pipe, [StableFlow(FLUX)])
    with pytest.raises(UnsupportedModelError, match="on a UNet use masa-ctrl"):
        attnctl.attach(build("sd1"), [StableFlow([0])])
    with pytest.raises(ConflictError, match="keys and values"):
        both(pipe, StableFlow([0]), attnctl.TokenDownsampling(where="joint"))
    hook.remove()
    assert not entered


def test_the_layers_of_flux_are_those_of_the_released_code() -> None:
    sites = [Site("transformer", f"b.{i}.attn", "joint", layer=i, heads=24) for i in range(57)]
    assert known_layers("stable-flow", sites, "some/model").layers == FLUX.layers
    double = [layer for layer in FLUX.layers if layer < 19]
    single = [layer - 19 for layer in FLUX.layers if layer >= 19]
    assert (double, single) == ([0, 1, 17, 18], [6, 9, 34, 35, 37])


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"layers": [0, 0]}, RecipeError, "twice"),
        ({"layers": [-1]}, RecipeError, "greater than or equal to 0"),
        ({"layers": "no-file.yaml"}, RecipeError, "there is no file"),
        ({"layers": [0], "where": "joint,heads=0"}, SettingError, "leave out where="),
        ({"layers": [0], "source": 1}, SettingError, "must be different pictures"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(
    settings: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        StableFlow(**settings)


def test_numbers_can_be_written_in_short() -> None:
    assert StableFlow("0-2+5").layers == VitalLayers(layers=(0, 1, 2, 5))
