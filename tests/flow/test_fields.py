"""Flow fields, providers, files and pictures."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnctl.errors import FlowError
from attnctl.flow import (
    ClipFlow,
    colour_flow,
    compose_flow,
    estimate_flow,
    find_cuts,
    find_occlusion,
    find_provider,
    flow_wheel,
    list_providers,
    pick_frames,
    read_flow,
    resize_flow,
    save_flow,
    warp,
)
from attnctl.flow.fields import frames_of_latents
from attnctl.flow.files import write_flo
from attnctl.flow.providers import raft_between


def texture(height: int = 48, width: int = 80, seed: int = 0) -> Tensor:
    """A soft random picture, ``(3, height, width)`` in [0, 1]."""
    noise = torch.rand(1, 3, height // 4, width // 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, (height, width), mode="bicubic")[0].clamp(0, 1)


def moved(picture: Tensor, dx: int, dy: int) -> Tensor:
    return picture.roll((dy, dx), (1, 2))


def inner(field: Tensor, margin: int = 10) -> Tensor:
    return field[..., margin:-margin, margin:-margin]


def constant(dx: float, dy: float, frames: int = 2, size: tuple[int, int] = (6, 8)) -> Tensor:
    return torch.tensor([float(dx), float(dy)]).view(1, 2, 1, 1).repeat(frames - 1, 1, *size)


@pytest.mark.parametrize("name", ["dis", "farneback"])
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (2, 3)])
def test_a_shifted_texture_has_the_flow_of_the_shift(name: str, dx: int, dy: int) -> None:
    picture = texture()
    flow = estimate_flow(torch.stack([picture, moved(picture, dx, dy)]), name)

    assert flow.forward.shape == (1, 2, 48, 80)
    assert inner(flow.forward)[0, 0].median() == pytest.approx(dx, abs=0.3)
    assert inner(flow.forward)[0, 1].median() == pytest.approx(dy, abs=0.3)
    assert flow.backward is not None
    assert inner(flow.forward + flow.backward).abs().median() < 0.2
    assert inner(flow.occluded()).float().mean() < 0.1


# Farneback of OpenCV drifts a little at the border, even between equal pictures.
@pytest.mark.parametrize(("name", "drift_px"), [("dis", 1e-3), ("farneback", 0.25)])
def test_equal_frames_do_not_move(name: str, drift_px: float) -> None:
    flow = estimate_flow(texture().expand(3, -1, -1, -1), name)

    assert flow.frames == 3
    assert flow.forward.abs().max() < drift_px
    assert not flow.occluded().any()
    assert flow.cuts == ()


def test_a_single_frame_has_an_empty_flow() -> None:
    flow = estimate_flow(texture()[None])

    assert flow.frames == 1
    assert flow.forward.shape == (0, 2, 48, 80)
    assert flow.cuts == ()


def test_a_cut_is_found_and_a_fast_motion_is_none() -> None:
    first, second = texture(seed=1), 1 - texture(seed=2)
    frames = torch.stack([first, moved(first, 4, 0), second, moved(second, -4, 2)])

    assert estimate_flow(frames).cuts == (1,)
    assert find_cuts(frames[:1], torch.zeros(0, 2, 48, 80)) == ()


def test_what_moves_under_something_else_is_hidden() -> None:
    forward, backward = constant(2, 0), constant(-2, 0)
    backward[0, 0, :, 5] = 0.0  # what arrives in column 5 says that it rested there

    hidden = find_occlusion(forward, backward)[0]
    assert torch.all(hidden[:, 3])
    assert not hidden[:, [0, 1, 2, 4]].any()
    assert torch.all(hidden[:, 6:])  # leaves the picture


def test_warping_by_a_whole_shift_is_exact() -> None:
    picture = texture()
    back = warp(moved(picture, 3, -2)[None], constant(3, -2, size=(48, 80)))[0]

    assert torch.allclose(inner(back), inner(picture), atol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (12, 16), (6, 4), (12, 8)])
def test_a_resized_flow_is_in_new_pixels(size: tuple[int, int]) -> None:
    sized = resize_flow(constant(4, -3), *size)

    assert sized.shape == (1, 2, *size)
    assert torch.allclose(sized[0, 0], torch.tensor(4 * size[1] / 8))
    assert torch.allclose(sized[0, 1], torch.tensor(-3 * size[0] / 6))


def test_composed_flows_add_up_and_skipped_frames_are_composed() -> None:
    assert torch.allclose(compose_flow(constant(1, 2), constant(3, -1)), constant(4, 1))
    clip = torch.cat([constant(1, 0), constant(2, 1), constant(0, 3), constant(1, 1)])

    assert torch.allclose(
        pick_frames(clip, [0, 2, 4])[:, :, 0, 0], torch.tensor([[3.0, 1], [1, 4]])
    )
    assert torch.equal(pick_frames(clip, range(5)), clip)
    assert len(pick_frames(clip, [3])) == 0
    for wrong in ([], [2, 1], [0, 5], [-1, 2]):
        with pytest.raises(FlowError, match="must increase"):
            pick_frames(clip, wrong)


def test_a_thinned_clip_keeps_its_way_back_and_its_cuts() -> None:
    forward = torch.cat([constant(1, 0), constant(2, 1), constant(0, 3), constant(1, 1)])
    thin = ClipFlow(forward, -forward, cuts=(3,)).picked([0, 1, 4])

    assert thin.backward is not None
    assert torch.allclose(thin.backward, -thin.forward)
    assert thin.cuts == (1,)


def test_each_latent_frame_has_a_picture_in_the_middle_of_its_group() -> None:
    assert frames_of_latents(17, 4) == [0, 2, 6, 10, 14]
    assert frames_of_latents(4, 1) == [0, 1, 2, 3]
    with pytest.raises(FlowError, match="take 17"):
        frames_of_latents(16, 4)


def test_flow_for_another_number_of_frames_is_refused() -> None:
    with pytest.raises(FlowError, match="4 frames, the clip has 3"):
        estimate_flow(texture().expand(3, -1, -1, -1), ClipFlow(constant(0, 0, 4)))


def test_precomputed_flow_fits_the_size_of_the_frames(tmp_path: Path) -> None:
    flow = ClipFlow(constant(4, 2, 3), constant(-4, -2, 3), cuts=(1,))
    file = save_flow(flow, tmp_path / "flow.npz")
    for source in (flow, file):
        fitted = estimate_flow(torch.rand(3, 3, 12, 8), source)
        assert fitted.cuts == (1,)
        assert torch.allclose(fitted.forward[0, :, 0, 0], torch.tensor([4.0, 4.0]))


def test_npz_and_flo_files_give_back_what_was_written(tmp_path: Path) -> None:
    flow = torch.randn(3, 2, 6, 8)
    again = read_flow(save_flow(ClipFlow(flow, -flow, cuts=(0, 2)), tmp_path / "clip.npz"))
    assert again.backward is not None
    assert torch.equal(again.forward, flow)
    assert torch.equal(again.backward, -flow)
    assert again.cuts == (0, 2)
    for t, field in enumerate(flow):
        write_flo(field, tmp_path / "clip" / f"{t:04d}.flo")
        write_flo(-field, tmp_path / "clip" / "backward" / f"{t:04d}.flo")
    folder = read_flow(tmp_path / "clip")
    assert torch.equal(folder.forward, flow)
    assert folder.backward is not None
    assert torch.equal(read_flow(tmp_path / "clip" / "0001.flo").forward, flow[1:2])


def test_flo_files_have_the_bytes_of_the_format(tmp_path: Path) -> None:
    file = write_flo(
        torch.stack([torch.arange(6.0).view(2, 3), torch.ones(2, 3)]), tmp_path / "a.flo"
    )
    data = file.read_bytes()

    assert data[:4] == b"PIEH"
    assert np.frombuffer(data[4:12], "<i4").tolist() == [3, 2]
    assert np.frombuffer(data[12:], "<f4").tolist()[:6] == [0, 1, 1, 1, 2, 1]


def test_broken_flow_files_are_explained(tmp_path: Path) -> None:
    def write(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    whole = write_flo(torch.zeros(2, 4, 4), tmp_path / "whole.flo").read_bytes()
    npz = save_flow(ClipFlow(constant(0, 0)), tmp_path / "whole.npz").read_bytes()
    np.savez(tmp_path / "other.npz", flow=np.zeros(3))
    (tmp_path / "empty").mkdir()
    cases = {
        write("bad.flo", b"nothing here"): "no .flo file",
        write("short.flo", whole[:-8]): "cut off",
        write("huge.flo", whole[:4] + b"\xff\xff\xff\x7f" * 2): "damaged",
        write("cut.npz", npz[: len(npz) // 2]): "npz file",
        tmp_path / "other.npz": "needs 'forward'",
        tmp_path / "empty": "no .flo file",
        tmp_path / "missing.npz": "no flow file",
        write("flow.txt", b"1 2 3"): "read from .npz",
    }
    for path, message in cases.items():
        with pytest.raises(FlowError, match=message):
            read_flow(path)


def test_misshapen_flows_are_refused() -> None:
    with pytest.raises(FlowError, match="channel 0 = dx"):
        ClipFlow(torch.zeros(3, 4, 4, 2))
    with pytest.raises(FlowError, match="not finite"):
        ClipFlow(torch.full((1, 2, 4, 4), torch.nan))
    with pytest.raises(FlowError, match="must be equal"):
        ClipFlow(constant(0, 0), constant(0, 0, 3))
    with pytest.raises(FlowError, match="cuts"):
        ClipFlow(constant(0, 0), cuts=(1,))
    with pytest.raises(FlowError, match="backward=True"):
        ClipFlow(constant(0, 0)).occluded()
    with pytest.raises(FlowError, match=r"\(F, 3, H, W\)"):
        estimate_flow(torch.rand(3, 4, 4))


def test_providers_are_listed_and_a_typo_is_explained() -> None:
    assert list(list_providers()) == ["dis", "farneback", "raft"]
    with pytest.raises(FlowError, match="'farneback'"):
        find_provider("farnback")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_raft_without_torchvision_says_what_to_do() -> None:
    with pytest.raises(FlowError, match="pip install torchvision"):
        estimate_flow(texture().expand(2, -1, -1, -1), "raft")


class ShiftNetwork(nn.Module):
    """Stands where RAFT does: checks its input and returns a list whose last entry counts."""

    def forward(self, first: Tensor, second: Tensor) -> list[Tensor]:
        assert first.shape[-2] % 8 == first.shape[-1] % 8 == 0
        assert min(first.shape[-2:]) >= 128
        right = torch.full_like(first[:, :2], first.shape[-1] / 40)
        return [torch.zeros_like(right), right]


def test_a_raft_network_gets_sizes_that_it_can_take() -> None:
    flow = raft_between(ShiftNetwork(), lambda a, b: (a, b), *torch.rand(2, 2, 3, 20, 40))

    assert flow.shape == (2, 2, 20, 40)
    assert torch.allclose(flow[:, 0], torch.tensor(1.0), atol=1e-5)


def test_a_provider_of_your_own_is_used() -> None:
    class Right:
        name = "right"

        def between(self, first: Tensor, second: Tensor) -> Tensor:
            return constant(1, 0, len(first) + 1, (48, 80))

    assert torch.all(estimate_flow(texture().expand(3, -1, -1, -1), Right()).forward[:, 0] == 1)


def test_pictures_of_flow_show_direction_by_hue_and_rest_in_white() -> None:
    field = torch.zeros(2, 4, 4)
    field[0, :, 2:] = 3.0
    picture = np.asarray(colour_flow(field))
    assert (picture[:, :2] == 255).all()
    assert (picture[0, 3] == (229, 57, 53)).all()
    other = np.asarray(colour_flow(-field))
    assert not (other[0, 3] == picture[0, 3]).all()
    wheel = np.asarray(flow_wheel(65))
    assert (wheel[0, 0] == 255).all()
    assert np.abs(wheel[32, 63].astype(int) - (229, 57, 53)).max() < 12
    with pytest.raises(FlowError, match="above 0"):
        colour_flow(field, 0.0)
