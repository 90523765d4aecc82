"""What holds for SoftPAG on SD3, FLUX, CogVideoX and Wan: off, rows, heads, replay, mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import AttentionCall, Technique
from attnctl.engine.planner import Planner
from attnctl.errors import NoSiteError, SettingError, WhereError
from attnctl.techniques.soft_pag import SoftPAG
from tests.support.pipelines import build, generate
from tests.techniques.perturbed_models import MODELS, Model

FAMILIES = ["sd3 dual, both", "flux both", "cogvideox", "wan"]

FIRST_BLOCKS = {
    "sd3": ["layers=0-2,joint", "layers=1-2,joint", "layers=2,joint"],
    "sd35": ["all", "layers=1,joint", "layers=0,self", "layers=0-1,joint"],
    "flux": [f"layers={first}-3,joint" for first in range(4)],
    "cogvideox": ["layers=0-1,joint", "layers=1,joint"],
    "wan": ["layers=0-1,self", "layers=1,self"],
}


@dataclass(frozen=True)
class Keep(Technique):
    """Keeps what comes out of each attention, by kind of row."""

    name: ClassVar[str] = "keep"
    seen: dict[str, list[Tensor]] = field(default_factory=dict, compare=False)

    def edit_output(self, call: AttentionCall, out: Tensor) -> Tensor:
        for place, row in enumerate(call.rows):
            if row.branch == "cond":
                self.seen.setdefault(row.kind, []).append(out[place].clone())
        return out


def steered(pipe: Any, *techniques: Technique, **changes: Any) -> Tensor:
    with attnctl.attach(pipe, techniques):
        return generate(pipe, **changes)


def first_outputs(model: Model, strength: float, heads: Sequence[int] | None = None) -> Any:
    """What the first perturbed site gives to the conditional and to the perturbed row."""
    keep = Keep(where=model.where)
    technique = SoftPAG(strength=strength, where=model.selector(heads))
    steered(build(model.pipeline), technique, keep, steps=1, **model.arguments)
    return keep.seen["main"][0], keep.seen["perturbed"][0]


@contextmanager
def counted(pipe: Any) -> Generator[Counter[str]]:
    """Count the rows that the denoiser and each of its blocks are given."""
    calls: Counter[str] = Counter()
    hooks = []
    for path, module in pipe.transformer.named_modules():
        is_block = path.rpartition(".")[0].endswith("blocks")
        if not path or is_block:
            hooks.append(module.register_forward_pre_hook(_counter(calls, path), with_kwargs=True))
    yield calls
    for hook in hooks:
        hook.remove()


def _counter(calls: Counter[str], path: str) -> Any:
    def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[path] += len(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    return count


OFF: dict[str, dict[str, Any]] = {
    "scale 0": {"scale": 0},
    "strength 0": {"strength": 0},
    "empty window": {"steps": attnctl.between(0.0, 0.0)},
    "window behind the run": {"steps": attnctl.after(7)},
}


@pytest.mark.parametrize("case", OFF)
@pytest.mark.parametrize("name", FAMILIES)
def test_off_is_identical_and_costs_no_forward(name: str, case: str) -> None:
    model = MODELS[name]
    pipe = build(model.pipeline)
    with counted(pipe) as plain_calls:
        plain = generate(pipe, **model.arguments)
    with counted(pipe) as calls:
        technique = SoftPAG(where=model.where, **OFF[case])
        assert torch.equal(steered(pipe, technique, **model.arguments), plain)
    assert calls == plain_calls
    assert len(calls) > 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_outside_the_window_is_identical_and_costs_no_forward(name: str) -> None:
    model = MODELS[name]
    pipe = build(model.pipeline)
    with counted(pipe) as plain_calls:
        plain = generate(pipe, steps=3, **model.arguments)
    late = SoftPAG(where=model.where, steps=attnctl.after(2))
    ends: list[Tensor] = []

    def keep(pipe: Any, index: int, timestep: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        ends.append(arguments["latents"].clone())
        return {}

    with counted(pipe) as calls:
        out = steered(pipe, late, steps=3, callback_on_step_end=keep, **model.arguments)
    mine = list(ends)
    ends.clear()
    generate(pipe, steps=3, callback_on_step_end=keep, **model.arguments)
    assert [torch.equal(a, b) for a, b in zip(mine, ends, strict=True)] == [True, True, False]
    assert not torch.equal(out, plain)
    assert sum(calls.values()) > sum(plain_calls.values())
    last = f"{model.paths[-1].rpartition('.')[0]}"
    assert calls[last] == plain_calls[last] + 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pipelines_own_rows_do_not_notice_the_added_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = MODELS[name]
    pipe = build(model.pipeline)
    seen: list[Tensor] = []
    monkeypatch.setattr(Planner, "added_sites", lambda *_: None)  # all rows in one batch
    hook = pipe.transformer.register_forward_hook(lambda *a: seen.append(a[-1][0].clone()))
    steered(pipe, SoftPAG(where=model.where), steps=1, **model.arguments)
    batched = list(seen)
    seen.clear()
    generate(pipe, steps=1, **model.arguments)
    hook.remove()
    assert len(batched[0]) == model.own_rows + 1
    assert len(seen[0]) == model.own_rows
    own = batched[0][: model.own_rows]
    assert torch.allclose(own, seen[0], atol=1e-5)
    assert not torch.allclose(batched[0][-1], seen[0][-1], atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_strength_is_linear_in_what_attention_gives(name: str) -> None:
    model = MODELS[name]
    (cond, whole), (_, part) = first_outputs(model, 1.0), first_outputs(model, 0.3)
    assert not torch.allclose(cond, whole, atol=1e-2)
    assert torch.allclose(part, 0.7 * cond + 0.3 * whole, atol=1e-5)


@pytest.mark.parametrize("form", ["joint", "image-block"])
@pytest.mark.parametrize("name", MODELS)
def test_heads_that_are_not_selected_stay_bit_identical(name: str, form: str) -> None:
    model = MODELS[name]
    keep = Keep(where=model.where)
    technique = SoftPAG(where=model.selector([1]), form=form)
    steered(build(model.pipeline), technique, keep, steps=1, **model.arguments)
    _, untouched = first_outputs(model, 1e-9, [1])
    changed = keep.seen["perturbed"][0]
    assert torch.equal(changed[0], untouched[0])
    assert not torch.allclose(changed[1], untouched[1], atol=1e-2)


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("sd3", ("layers=1+2,joint", "layers=2+1+1+2,joint", "joint,layers=2|layers=1,joint")),
        ("flux both", ("layers=1+3,joint", "layers=3+1,joint", "layers=3,joint|layers=1+3,joint")),
        ("cogvideox", ("joint", "layers=1+0,joint", "layers=0+1+0,joint,heads=1+0+1")),
        ("wan", ("self", "layers=1,self|layers=0,self", "self|self,heads=0")),
    ],
)
def test_order_and_repetition_of_sites_do_not_matter(name: str, texts: tuple[str, ...]) -> None:
    model = MODELS[name]
    pipe = build(model.pipeline)
    first, *others = (steered(pipe, SoftPAG(where=one), **model.arguments) for one in texts)
    assert not torch.equal(first, generate(pipe, **model.arguments))
    assert all(torch.allclose(first, other, atol=1e-6, rtol=0) for other in others)


@pytest.mark.parametrize(
    ("pipeline", "where"), [(name, where) for name, of in FIRST_BLOCKS.items() for where in of]
)
def test_replay_equals_one_batch_for_each_first_block(
    pipeline: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = build(pipeline)
    technique = SoftPAG(scale=2.0, strength=0.7, where=where)
    plain, replayed = generate(pipe), steered(pipe, technique)
    monkeypatch.setattr(Planner, "added_sites", lambda *_: None)  # nothing may be replayed
    batched = steered(pipe, technique)
    assert (batched - plain).abs().max() > 1e-3
    assert (replayed - batched).abs().max() < 2e-6 * plain.abs().max()


def test_dual_attention_has_a_joint_and_an_image_site_in_one_block() -> None:
    with attnctl.attach(build("sd35"), [SoftPAG(where="all")]) as session:
        kinds = {site.path: (site.kind, site.layer) for site in session.sites}
    assert kinds["transformer_blocks.0.attn"] == ("joint", 0)
    assert kinds["transformer_blocks.0.attn2"] == ("self", 0)
    assert kinds["transformer_blocks.1.attn"] == ("joint", 1)
    assert "transformer_blocks.1.attn2" not in kinds


def test_the_expert_without_a_selected_site_is_left_alone() -> None:
    pipe = build("wan22")
    late = SoftPAG(where="denoiser=transformer_2,self,layers=1")
    with counted(pipe) as plain_calls:
        plain = generate(pipe, steps=4)
    with counted(pipe) as calls:
        out = steered(pipe, late, steps=4)
    assert calls == plain_calls
    assert calls[""] > 0
    assert not torch.equal(out, plain)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        ("mid:self", NoSiteError, "matches no attention site"),
        ("layers=40", NoSiteError, "layers 0-"),
        ("all,heads=2", WhereError, "2 heads"),
        ("all,heads=0-7", WhereError, "2 heads"),
        ("all,heads=", WhereError, "heads=3"),
    ],
)
def test_a_selector_that_does_not_fit_is_refused_at_attach(
    name: str, where: str, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        attnctl.attach(build(MODELS[name].pipeline), [SoftPAG(where=where)])


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -0.1}, "scale=-0.1"),
        ({"scale": float("nan")}, "finite"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": True}, "scale=True"),
        ({"strength": float("nan")}, "from 0 to 1"),
        ({"strength": -0.01}, "from 0 to 1"),
        ({"adaptive_scale": float("-inf")}, "adaptive_scale=-inf"),
        ({"form": "image-blocks"}, "image-block"),
        ({"form": None}, "joint"),
        ({"target": "mean-query"}, "query-mean"),
        ({"form": "image-block", "target": "uniform"}, "form='joint' or 'image-rows'"),
    ],
)
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        SoftPAG(**settings)
