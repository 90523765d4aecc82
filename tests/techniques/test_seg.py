"""SEG against a Gaussian written as loops, SoftPAG's mean query, and its invariants."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import attnctl
from attnctl import SEG, AttendAndExcite, SoftPAG
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.blur import blur_queries, gaussian_weights
from tests.core.samples import Watch
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate
from tests.techniques.damaged import assert_same_effect, counted, in_one_batch, steered

LATE = {
    "sd1": "up:self",
    "sdxl": "up:self",
    "sd3": "layers=1,joint",
    "sd35": "layers=1",
    "flux": "single:joint",
    "pixart_sigma": "layers=1,self",
    "animatediff": "up:self",
    "cogvideox": "layers=1,joint",
    "wan": "layers=1,self",
}


def blurred_by_loops(image: Tensor, sigma: float) -> Tensor:
    """One map ``(h, w)`` in float64: every place is a weighted mean of the places around it."""
    height, width = image.shape
    count = math.ceil(6 * sigma)
    count += 1 - count % 2
    spans = []
    for side in (height, width):
        reach = min(count, side if side % 2 else side - 1) // 2
        weights = [math.exp(-0.5 * (d / sigma) ** 2) for d in range(-reach, reach + 1)]
        spans.append((reach, [weight / sum(weights) for weight in weights]))
    out = torch.zeros(height, width, dtype=torch.float64)
    (down, rows), (across, columns) = spans
    for y in range(height):
        for x in range(width):
            for i, row in enumerate(rows):
                for j, column in enumerate(columns):
                    place = reflected(y + i - down, height), reflected(x + j - across, width)
                    out[y, x] += row * column * image[place].double()
    return out


def reflected(place: int, side: int) -> int:
    place = -place if place < 0 else place
    return 2 * (side - 1) - place if place >= side else place


@pytest.mark.parametrize("sigma", [0.3, 0.5, 1.0, 2.5, 40.0])
@pytest.mark.parametrize(("height", "width"), [(3, 8), (6, 4), (5, 5), (1, 7), (2, 2)])
def test_the_blur_equals_loops_on_maps_of_any_shape(height: int, width: int, sigma: float) -> None:
    torch.manual_seed(height + width)
    query = torch.randn(2, 3, 2 * height * width, 4)
    ours = blur_queries(query, height, width, sigma).unflatten(2, (2, height, width))
    maps = query.unflatten(2, (2, height, width))
    for place in [(0, 0, 0, 0), (1, 2, 1, 3)]:
        row, head, frame, channel = place
        expected = blurred_by_loops(maps[row, head, frame, :, :, channel], sigma)
        assert torch.allclose(ours[row, head, frame, :, :, channel].double(), expected, atol=2e-6)


def test_a_blur_without_width_changes_no_bit() -> None:
    query = torch.randn(1, 2, 12, 4, dtype=torch.bfloat16)
    assert torch.equal(blur_queries(query, 3, 4, 1e-3), query)


@pytest.mark.parametrize("sigma", [-1.0, 1e4])
def test_an_infinite_blur_gives_every_token_the_mean_of_its_frame(sigma: float) -> None:
    query = torch.randn(1, 2, 2 * 12, 4)
    ours = blur_queries(query, 3, 4, sigma).unflatten(2, (2, 12))
    assert torch.allclose(ours, query.unflatten(2, (2, 12)).mean(3, keepdim=True).expand_as(ours))


def test_a_wide_blur_tends_to_no_bit_more_than_its_kernel_reaches() -> None:
    assert len(gaussian_weights(100.0, 8)) == 7
    assert len(gaussian_weights(0.5, 64)) == 3
    assert gaussian_weights(3.0, 64).sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("sigma", [0.7, 3.0, -1.0])
def test_a_constant_map_stays(sigma: float) -> None:
    query = torch.randn(1, 2, 1, 4).expand(-1, -1, 15, -1)
    assert torch.allclose(blur_queries(query, 3, 5, sigma), query, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.8, -1.0])
def test_added_rows_alone_are_blurred_with_the_true_aspect_ratio(
    sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_batch(monkeypatch)
    pipe, watch = build("sd1"), Watch(where="mid:self")
    steered(pipe, SEG(sigma=sigma), watch, steps=1, height=32, width=64)
    call = watch.seen[0]
    query = call.query
    width = math.isqrt(2 * query.shape[2])
    height = width // 2
    assert height * width == query.shape[2]
    assert [row.kind for row in call.rows] == ["main", "main", "perturbed"]
    expected = blur_queries(query[1:2], height, width, sigma)
    assert torch.allclose(query[2:], expected, atol=1e-5)
    assert torch.allclose(call.key[2], call.key[1], atol=1e-5)
    assert torch.allclose(call.value[2], call.value[1], atol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux", "cogvideox"])
def test_text_queries_of_joint_attention_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_batch(monkeypatch)
    where = "layers=0,joint"
    pipe, watch = build(name), Watch(where=where, needs_layout=True)
    steered(pipe, SEG(where=where), watch, steps=1)
    call = watch.seen[0]
    layout = call.layout
    assert layout is not None
    assert layout.text is not None
    own, added = call.query[-2], call.query[-1]
    assert torch.allclose(own[:, layout.text], added[:, layout.text], atol=1e-5)
    assert not torch.allclose(own[:, layout.image], added[:, layout.image], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "where", "form"),
    [
        ("sd1", "mid:self", "joint"),
        ("sdxl", "down:self", "joint"),
        ("pixart_sigma", "layers=1,self", "joint"),
        ("sd3", "layers=1,joint", "image-rows"),
        ("flux", "single:joint", "image-rows"),
    ],
)
def test_an_infinite_blur_is_soft_pag_towards_the_mean_query(
    name: str, where: str, form: str
) -> None:
    pipe = build(name)
    plain = generate(pipe)
    mean = SoftPAG(scale=2.0, target="query-mean", where=where, form=form)
    theirs = steered(pipe, mean)
    ours = steered(pipe, SEG(scale=2.0, sigma=math.inf, where=where))
    assert_same_effect(ours, theirs, plain)


def test_heads_that_are_not_selected_keep_their_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_batch(monkeypatch)
    pipe, watch = build("sd1"), Watch(where="mid:self")
    steered(pipe, SEG(where="mid:self,heads=1"), watch, steps=1)
    query = watch.seen[0].query
    assert torch.allclose(query[2, 0], query[1, 0], atol=1e-5)
    assert not torch.allclose(query[2, 1], query[1, 1], atol=1e-3)


@pytest.mark.parametrize("name", LATE)
def test_replay_equals_one_batch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, seg = build(name), SEG(sigma=1.0, where=LATE[name])
    plain, before = generate(pipe), fingerprint(pipe)
    with attnctl.attach(pipe, seg) as session:
        replayed = generate(pipe)
    assert all(entry.first for entry in session.report().added)
    assert differences(before, fingerprint(pipe)) == []
    in_one_batch(monkeypatch)
    batched = steered(pipe, seg)
    assert_same_effect(replayed, batched, plain)


@pytest.mark.parametrize(
    "technique",
    [
        SEG(scale=0),
        SEG(sigma=0),
        SEG(steps=attnctl.between(0.0, 0.0)),
        SEG(steps=attnctl.after(7)),
    ],
    ids=["scale 0", "sigma 0", "empty window", "window behind the run"],
)
def test_off_is_identical_and_costs_no_forward(technique: SEG) -> None:
    pipe = build("sd1")
    with counted(pipe.unet.conv_in) as plainly:
        plain = generate(pipe)
    with counted(pipe.unet.conv_in) as attached:
        assert torch.equal(steered(pipe, technique), plain)
    assert attached == plainly


def test_a_blur_that_is_too_narrow_to_matter_is_reported() -> None:
    pipe = build("sd1")
    plain = generate(pipe)
    with attnctl.attach(pipe, SEG(sigma=1e-3)) as session:
        assert torch.allclose(generate(pipe), plain, atol=2e-4)
    assert any("no effect" in line for line in session.report().warnings)
    with attnctl.attach(pipe, SEG()) as session:
        generate(pipe)
    assert session.report().warnings == []


def test_seg_and_attend_and_excite_run_together() -> None:
    pipe = build("sd1")
    exciting = AttendAndExcite(["cat", "frog"], thresholds={})
    alone, excited = steered(pipe, SEG()), steered(pipe, exciting)
    both = steered(pipe, exciting, SEG())
    assert not torch.equal(both, alone)
    assert not torch.equal(both, excited)


@pytest.mark.parametrize("where", ["mid:cross", "cross"])
def test_cross_attention_is_refused_before_the_first_step(where: str) -> None:
    with pytest.raises(UnsupportedModelError, match="cross attention"):
        steered(build("sd1"), SEG(where=where))


def test_a_model_without_a_middle_says_what_it_has() -> None:
    with pytest.raises(NoSiteError, match=r"'mid:self'.*2 self.*block:self"):
        attnctl.attach(build("pixart_sigma"), SEG())


def test_a_model_whose_tokens_nobody_describes_is_refused(unknown_pipe: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="image"):
        attnctl.attach(unknown_pipe, SEG(where="all"))


@pytest.mark.parametrize("settings", [{"scale": -1.0}, {"sigma": math.nan}, {"sigma": "wide"}])
def test_a_bad_setting_is_refused_at_construction(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="must be a finite number"):
        SEG(**settings)
