"""Rendered clips: their flow, visibility and cuts are true, and estimated flow comes close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnctl.flow import build_lanes, estimate_flow, warp
from attnctl.shapes import verify
from attnctl.shapes.clips import GROUND, Clip, ClipSettings, draw_clip
from attnctl.shapes.world import render


def clip_of(seed: int, **settings: object) -> Clip:
    return draw_clip(torch.Generator().manual_seed(seed), ClipSettings(**settings))  # type: ignore[arg-type]


def grown(mask: Tensor, pixels: int = 2) -> Tensor:
    """A mask ``(B, H, W)`` with a margin."""
    size = 2 * pixels + 1
    return torch.nn.functional.max_pool2d(mask[:, None].float(), size, 1, pixels)[:, 0] > 0


def outlines(objects: Tensor) -> Tensor:
    """Pixels near the edge of an object, ``(B, H, W)``."""
    edge = torch.zeros_like(objects, dtype=torch.bool)
    edge[:, 1:] |= objects[:, 1:] != objects[:, :-1]
    edge[:, :, 1:] |= objects[:, :, 1:] != objects[:, :, :-1]
    return grown(edge)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another() -> None:
    one, again, other = clip_of(1), clip_of(1), clip_of(2)

    assert torch.equal(one.frames, again.frames)
    assert torch.equal(one.flow.forward, again.flow.forward)
    assert one.frames.shape == (16, 3, 64, 64)
    assert not torch.equal(one.frames, other.frames)


@pytest.mark.parametrize("crossing", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_visible_pixels_keep_their_colour_along_the_true_flow(seed: int, crossing: bool) -> None:
    clip = clip_of(seed, crossing=crossing, speed_px=(1.0, 3.0))
    back = warp(clip.frames[1:], clip.flow.forward)
    away = ~outlines(clip.objects)
    sure = clip.visible & away[:-1] & (warp(away[1:, None].float(), clip.flow.forward)[:, 0] > 0.99)
    error = (back - clip.frames[:-1]).abs().amax(1)

    assert sure.float().mean() > 0.4
    assert error[sure].max() < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_the_way_back_undoes_the_way_there(seed: int) -> None:
    clip = clip_of(seed, crossing=True)
    assert clip.flow.backward is not None
    moved = warp(clip.flow.backward, clip.flow.forward)
    sure = clip.visible & ~outlines(clip.objects)[:-1] & ~outlines(clip.objects)[1:]

    assert (clip.flow.forward + moved).abs().amax(1)[sure].max() < 1e-3


def test_hidden_pixels_are_those_that_another_object_covers() -> None:
    clip = clip_of(0, crossing=True, speed_px=(3.0, 4.0))
    hidden = ~clip.visible
    places = torch.stack(torch.meshgrid(torch.arange(64), torch.arange(64), indexing="xy"))
    target = (places + clip.flow.forward).round().long().clamp(0, 63)
    there = torch.stack([clip.objects[t + 1][target[t, 1], target[t, 0]] for t in range(15)])
    covered = there > clip.objects[:-1]

    # Rounding the target to a pixel errs by half a pixel on strips that are some pixels wide.
    assert hidden.sum() > 200
    assert (hidden & covered).sum() > 0.6 * (hidden | covered).sum()


def test_each_frame_shows_what_the_caption_names() -> None:
    for seed in range(3):
        clip = clip_of(seed)
        assert all(verify(frame, str(clip.caption)).exact for frame in clip.frames)


def test_objects_that_may_not_cross_stay_apart_and_inside() -> None:
    clip = clip_of(5)
    scenes = clip.scenes

    assert clip.visible.all(dim=0).float().mean() > 0.5
    inside = (scenes.x_px - scenes.radius_px)[scenes.present]
    assert torch.all(inside >= 0)
    assert torch.all((scenes.y_px + scenes.radius_px)[scenes.present] <= 64)


def test_a_cut_changes_the_scene_and_keeps_the_objects() -> None:
    clip = clip_of(3, cuts=(5,), crossing=True)

    assert clip.flow.cuts == (5,)
    assert not clip.visible[5].any()
    assert torch.equal(clip.scenes.colour[5], clip.scenes.colour[6])
    jump = (clip.scenes.x_px[1:, 0] - clip.scenes.x_px[:-1, 0]).abs()
    assert jump.argmax() == 5


@pytest.mark.parametrize("seed", [0, 3, 5, 6])
def test_estimation_finds_the_cut_and_only_that(seed: int) -> None:
    assert estimate_flow(clip_of(seed, cuts=(7,), crossing=True).frames).cuts == (7,)
    assert estimate_flow(clip_of(seed, crossing=True).frames).cuts == ()


def test_a_static_clip_does_not_move() -> None:
    clip = clip_of(0, speed_px=(0.0, 0.0), swing=0.0)

    assert not clip.flow.forward.any()
    assert clip.visible.all()
    assert build_lanes(estimate_flow(clip.frames), (16, 16)).is_unbroken


@pytest.mark.parametrize("seed", range(5))
def test_estimated_flow_is_within_half_a_pixel_of_the_truth(seed: int) -> None:
    clip = clip_of(seed, crossing=True)
    error = (estimate_flow(clip.frames).forward - clip.flow.forward).norm(dim=1)
    on_objects = clip.visible & (clip.objects[:-1] != GROUND)

    assert error[clip.visible].median() < 0.5
    assert error[on_objects].median() < 0.5


def test_lanes_on_the_true_flow_stay_on_their_object() -> None:
    clip = clip_of(2)
    lanes = build_lanes(clip.flow, (64, 64), carry=True)
    objects = clip.objects.flatten(1).gather(1, lanes.cells).mT
    same = objects[:, 1:] == objects[:, :-1]
    joined = lanes.segment[:, 1:] == lanes.segment[:, :-1]

    assert same[joined].float().mean() > 0.97


def test_a_recoloured_clip_changes_one_object_alone() -> None:
    clip = clip_of(4)
    colour = next(c for c in ("red", "green") if c != clip.caption.objects[0].colour)
    edited = clip.recoloured(0, colour)
    changed = (edited.frames - clip.frames).abs().amax(1) > 0.05

    assert edited.caption.objects[0].colour == colour
    assert edited.caption.objects[1:] == clip.caption.objects[1:]
    assert torch.equal(render(clip.scenes), clip.frames)
    assert not changed[clip.objects > 0].any()
    assert verify(edited.frames[7], str(edited.caption)).exact


def test_clips_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller one first"):
        ClipSettings(speed_px=(2.0, 1.0))
    with pytest.raises(ValueError, match="cuts"):
        ClipSettings(frames=4, cuts=(3,))
    with pytest.raises(ValueError, match="colours are"):
        clip_of(0).recoloured(0, "mauve")
