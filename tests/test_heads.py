"""Head sets: what they accept, what they refuse, and that SoftPAG pulls exactly these heads."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch

import attnctl
from attnctl import HeadSet, SoftPAG
from attnctl.errors import (
    LayerNotFoundError,
    RecipeError,
    SettingError,
    UnsupportedModelError,
    WhereError,
)
from attnctl.head_layers import Structure, numbered_layers
from attnctl.recipes import Recipe
from tests.support.pipelines import build, generate

MID = "mid_block.attentions.0.transformer_blocks.0.attn1"
THREE = [(2, 0), (2, 1), (4, 1)]


@pytest.fixture(scope="module")
def pipe():
    return build("sd1")


def sites(pipe):
    return attnctl.attach(pipe, []).sites


def steered(pipe, heads, **settings: Any):
    with attnctl.attach(pipe, [SoftPAG(heads=heads, **settings)]):
        return generate(pipe)


# --- reading and writing --------------------------------------------------------------------------


def test_all_ways_of_writing_a_set_are_equal(tmp_path):
    listed = HeadSet.parse([(7, 3), (7, 5), (9, 0)])
    assert HeadSet.parse({7: [3, 5], 9: 0}) == listed
    assert HeadSet.parse({"heads": [[7, 3], {"layer": 7, "head": 5}, [9, 0]]}) == listed
    assert HeadSet.from_file(listed.save(tmp_path / "heads.yaml")) == listed
    assert HeadSet.parse(tmp_path / "heads.yaml") == HeadSet.parse(listed) == listed
    assert HeadSet.parse({7: {3: 0.5}}) == HeadSet.parse([(7, 3, 0.5)])
    assert HeadSet.parse({MID: [1]}).heads[0].path == MID


def test_everything_that_a_set_records_survives_its_file(tmp_path):
    whole = HeadSet.from_dict(
        {
            "model": "shapes",
            "structure": {"kind": "self", "layers": 3, "heads": [4, 4, 2]},
            "objective": "shapes",
            "scale": 3.0,
            "strength": 1.0,
            "target": "identity",
            "form": "joint",
            "steps": 20,
            "guidance": 1.0,
            "seeds": [0, 1],
            "heads": [{"layer": 1, "path": MID, "head": 2, "strength": 0.5, "score": -1.25}],
        }
    )
    assert HeadSet.from_file(whole.save(tmp_path / "heads.yaml")) == whole


def test_a_beginning_of_a_set_is_a_set():
    whole = HeadSet.parse(THREE)
    assert whole.first(2) == HeadSet.parse(THREE[:2])
    assert whole.first(3) == whole
    assert len(whole.first(0)) == 0
    with pytest.raises(SettingError, match="the set has 3 heads"):
        whole.first(4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "is no head set"),
        ([(3,)], r"heads\.0: a head is \(layer, head\)"),
        ([(3, True)], "valid integer, got True"),
        ([(3, -1)], "greater than or equal to 0"),
        ([(3, 1, 1.5)], "less than or equal to 1"),
        ([(3, 1, float("nan"))], "finite"),
        ([{"head": 1}], "needs the number or the path"),
        ([{"layer": 1, "haed": 1}], "did you mean 'head'"),
        ({"heads": [], "scael": 3}, "did you mean 'scale'"),
        ({"heads": [], "version": 2}, "version: input should be 1, got 2"),
        ("nowhere.yaml", "there is no file 'nowhere.yaml'"),
    ],
)
def test_what_is_no_head_set_is_explained(value, text):
    with pytest.raises(RecipeError, match=text):
        SoftPAG(heads=value)


def test_every_mistake_of_a_file_has_its_line(tmp_path):
    path = tmp_path / "heads.yaml"
    path.write_text("version: 1\nheads:\n- [3, 1]\n- [3, x]\n- {layer: 1, head: 0, strength: 2}\n")
    with pytest.raises(RecipeError) as error:
        HeadSet.from_file(path)
    assert [line.split(": ")[0] for line in str(error.value).splitlines()] == [
        f"{path}:4",
        f"{path}:5",
    ]


# --- which layer is meant -------------------------------------------------------------------------


def test_numbers_count_self_attention_where_nothing_is_joint(pipe):
    layers = numbered_layers(sites(pipe))
    assert [site.layer for site in layers] == list(range(7))
    assert layers[2].path == MID


def test_numbers_count_both_stacks_of_flux():
    pipe = build("flux")
    layers = numbered_layers(sites(pipe))
    doubles = len(pipe.transformer.transformer_blocks)
    assert layers[doubles - 1].path == f"transformer_blocks.{doubles - 1}.attn"
    assert layers[doubles].path == "single_transformer_blocks.0.attn"


def test_numbers_are_those_of_the_selector(pipe):
    with attnctl.attach(pipe, [SoftPAG(where="layers=4,self,heads=1")]):
        selected = generate(pipe)
    assert torch.equal(steered(pipe, [(4, 1)]), selected)


def test_a_path_and_a_number_name_the_same_layer(pipe):
    assert torch.equal(steered(pipe, [(MID, 1)]), steered(pipe, [(2, 1)]))


# --- what it does ---------------------------------------------------------------------------------


def test_neither_order_nor_duplicates_matter(pipe):
    once = steered(pipe, THREE)
    for order in permutations(THREE):
        assert torch.equal(steered(pipe, [*order, order[0], (MID, 1)]), once)


def test_heads_outside_the_set_stay_bit_identical(pipe):
    little, much = (_before_projection(pipe, [(2, 1, u)]) for u in (0.5, 0.9))
    width = much.shape[-1] // 2
    assert torch.equal(little[..., :width], much[..., :width])
    assert not torch.equal(little[..., width:], much[..., width:])


def test_each_head_has_its_own_strength(pipe):
    mixed = _before_projection(pipe, [(2, 0, 0.25), (2, 1)], strength=0.75)
    width = mixed.shape[-1] // 2
    quarter = _before_projection(pipe, [(2, 0, 0.25), (2, 1, 0.25)])
    most = _before_projection(pipe, [(2, 0), (2, 1)], strength=0.75)
    assert torch.equal(mixed[..., :width], quarter[..., :width])
    assert torch.equal(mixed[..., width:], most[..., width:])
    assert not torch.equal(quarter, most)


def _before_projection(pipe, heads, **settings: Any):
    """What goes into the output projection of the mid block's perturbed row."""
    seen = []
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]
    hook = layer.register_forward_hook(lambda _, args, out: seen.append(args[0].clone()))
    with attnctl.attach(pipe, [SoftPAG(heads=heads, **settings)]):
        generate(pipe, steps=1)
    hook.remove()
    return seen[-1]


@pytest.mark.parametrize("heads", [[], [(2, 0, 0.0)], {2: {0: 0, 1: 0}}])
def test_nothing_to_pull_is_identical_and_adds_no_row(pipe, heads):
    plain = generate(pipe)
    rows = _rows(pipe.unet.conv_out)
    assert torch.equal(steered(pipe, heads), plain)
    assert rows == [2, 2]


def test_the_added_row_starts_at_the_first_layer_of_the_set(pipe):
    before, inside = _rows(pipe.unet.down_blocks[1].resnets[0]), _rows(pipe.unet.mid_block)
    steered(pipe, [(0, 0, 0.0), (4, 1), (2, 0)], steps="0")  # a head at 0 does not count
    assert (sum(before), sum(inside)) == (2 + 2, 3 + 2)


def _rows(module):
    """Rows of each call of a module, from now on."""
    seen: list[int] = []
    module.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    return seen


@pytest.mark.parametrize("name", ["sd3", "flux", "pixart_sigma", "wan"])
def test_sets_work_on_other_families(name):
    pipe = build(name)
    plain = generate(pipe)
    out = steered(pipe, {1: [0]})
    assert torch.isfinite(out).all()
    assert not torch.equal(out, plain)


# --- what it refuses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("heads", "error", "text"),
    [
        ([(7, 0)], LayerNotFoundError, "no layer 7; this model has self layers 0 to 6"),
        ([("mid.attn1", 0)], LayerNotFoundError, 'no attention layer "mid.attn1"'),
        ([(2, 2)], WhereError, r"no head 2 in layer 2 .*; it has heads 0 to 1"),
        ([(2, 0), (MID, 0, 0.5)], WhereError, "there twice, with different strengths"),
        ([(MID.replace("attn1", "attn2"), 0)], UnsupportedModelError, "from image to text"),
        ([{"layer": 3, "path": MID, "head": 0}], LayerNotFoundError, "is self layer 2 of this"),
    ],
)
def test_heads_that_the_model_does_not_have_are_refused_at_attach(pipe, heads, error, text):
    with pytest.raises(error, match=text):
        attnctl.attach(pipe, [SoftPAG(heads=heads)])


def test_a_set_of_another_structure_is_refused(pipe):
    other = Structure(kind="joint", layers=24, heads=24)
    made = HeadSet.parse([(2, 0)]).model_copy(update={"structure": other, "model": "sd3"})
    with pytest.raises(UnsupportedModelError, match="'sd3' with 24 joint layers of 24 heads; this"):
        attnctl.attach(pipe, [SoftPAG(heads=made)])
    mine = Structure.of(sites(pipe))
    steered(pipe, made.model_copy(update={"structure": mine}))


def test_a_set_of_another_model_is_refused_by_its_name():
    shapes = attnctl.load_pipeline("shapes")
    made = HeadSet.parse([(2, 0)]).model_copy(update={"model": "owner/other"})
    with pytest.raises(UnsupportedModelError, match=r"'owner/other', this is 'shapes'.*delete"):
        attnctl.attach(shapes, [SoftPAG(heads=made)])
    attnctl.attach(shapes, [SoftPAG(heads=made.model_copy(update={"model": "shapes"}))]).detach()


def test_heads_and_where_together_are_refused():
    with pytest.raises(SettingError, match="leave out where=up:self"):
        SoftPAG(heads=THREE, where="up:self")


# --- recipes --------------------------------------------------------------------------------------


def test_a_recipe_carries_the_heads_and_not_the_name_of_their_file(tmp_path):
    path = HeadSet.parse(THREE).save(tmp_path / "heads.yaml")
    entry = {"soft-pag": {"heads": str(path), "scale": 2.0}}
    recipe = Recipe.from_dict({"prompt": "a cat", "techniques": [entry]})
    path.unlink()
    again = Recipe.from_file(recipe.save(tmp_path / "recipe.yaml"))
    assert again == recipe
    (technique,) = again.build_techniques()
    assert technique == SoftPAG(heads=THREE, scale=2.0)
    assert SoftPAG.from_settings(technique.settings()) == technique
