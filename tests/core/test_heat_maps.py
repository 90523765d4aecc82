"""Heat maps in the loop: the explicit softmax of every site, and a picture that stays the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnctl import AttentionCall, HeatMaps, attach, until
from attnctl.errors import AttnctlError, SettingError
from tests.core.samples import Temperature, Watch
from tests.support.pipelines import PIPELINES, PROMPT, build, generate

KNOWN = [name for name, entry in PIPELINES.items() if entry.family not in (None, "dit")]
VIDEOS = ("animatediff", "cogvideox", "wan", "wan22")


def explicit_columns(call: AttentionCall) -> Tensor:
    """Softmax of q k written out, in float64: ``(batch, heads, image tokens, text tokens)``."""
    assert call.layout is not None
    assert call.layout.text is not None
    query, key = call.query.double(), call.key.double()
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query @ key.transpose(-1, -2) * call.scale
    mask = call.additive_mask()
    if mask is not None:
        scores = scores + mask.double()
    return scores.softmax(-1)[:, :, call.layout.image, call.layout.text]


def watched_run(name: str, **options: Any) -> tuple[Any, Tensor, list[AttentionCall], Tensor]:
    """Maps of a run, and the calls that they come from."""
    pipe = build(name)
    plain = generate(pipe, **options)
    watch = Watch(needs_layout=True, where=HeatMaps().where)
    with attach(pipe, [watch, HeatMaps(keep_heads=True, keep_steps=True)]) as session:
        made = generate(pipe, **options)
        return session.maps, made, watch.seen, plain


@pytest.mark.parametrize("name", KNOWN)
def test_maps_equal_the_explicit_softmax_and_the_picture_is_bitwise_plain(name: str) -> None:
    maps, made, calls, plain = watched_run(name)
    assert torch.equal(made, plain)
    compared = 0
    for path in maps.layers:
        mine = [call for call in calls if call.site.path == path]
        columns = []
        for call in mine:
            at = call.pick(branch="cond", item=0, kind="main")
            if len(at):
                columns.append(explicit_columns(call)[at])
        # (calls, fold, heads, cells, tokens) to the mean over calls, frames in the fold and heads
        expected = torch.stack(columns).mean(dim=(0, 1, 2))
        grid = mine[0].layout.grid  # pyright: ignore[reportOptionalMemberAccess]
        if mine[0].layout.fold == "rows":  # pyright: ignore[reportOptionalMemberAccess]
            expected = expected.unflatten(0, grid).mean(0)
        else:
            expected = expected.unflatten(0, grid[1:])
        for token in (1, 2):
            found = maps.token(token, layers=path, absolute=True)
            if found.shape == expected.shape[:2]:  # smaller grids are shown at the size of others
                compared += 1
                assert (found - expected[..., token]).abs().max() < 1e-5
    assert compared >= 2


@pytest.mark.parametrize("name", ["sd1", "sdxl", "pixart_alpha", "wan", "animatediff"])
def test_columns_of_cross_attention_sum_to_one_over_all_tokens(name: str) -> None:
    maps, _, _, _ = watched_run(name)
    count = len(maps.tokens())
    total = sum(maps.token(token, absolute=True) for token in range(count))

    assert (torch.as_tensor(total) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["sd3", "flux", "cogvideox"])
def test_columns_of_joint_attention_leave_a_part_to_the_picture(name: str) -> None:
    maps, _, _, _ = watched_run(name)
    total = sum(maps.token(token, absolute=True) for token in range(len(maps.tokens())))

    assert 0.01 < float(torch.as_tensor(total).mean()) < 1


@pytest.mark.parametrize("name", VIDEOS)
def test_maps_of_a_video_have_frames_and_the_grid_of_a_frame(name: str) -> None:
    maps, _, calls, _ = watched_run(name)
    grid = calls[0].layout.grid if calls[0].layout else ()

    assert maps.word("cat").shape == grid[1:]
    if name != "animatediff":
        frames = [maps.raw("cat", frame=frame) for frame in range(grid[0])]
        assert torch.allclose(torch.stack(frames).mean(0), maps.raw("cat"), atol=1e-6)


@pytest.mark.parametrize("name", ["sd1", "sd3", "flux", "pixart_alpha", "animatediff"])
def test_items_of_a_batch_have_the_maps_of_single_runs(name: str) -> None:
    pipe = build(name)
    prompts = [PROMPT, "a cat on the red photo"]
    with attach(pipe, HeatMaps()) as session:
        generate(pipe, prompts)
        both = [session.maps.raw("cat", item=item) for item in range(2)]
        for item, prompt in enumerate(prompts):
            generate(pipe, prompt, seed=item)
            assert torch.allclose(both[item], session.maps.raw("cat"), atol=1e-5)


def test_without_guidance_and_with_it_the_maps_are_those_of_the_prompt() -> None:
    pipe = build("sd1")
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = []
    for guidance in (1.0, 7.5):
        with attach(pipe, HeatMaps(steps=until(1))) as session:
            generate(pipe, latents=noise, guidance_scale=guidance)
            maps.append(session.maps.raw("cat"))

    assert torch.allclose(*maps, atol=1e-5)


def test_maps_show_the_attention_that_edits_leave() -> None:
    pipe = build("sd1")
    with attach(pipe, HeatMaps()) as session:
        generate(pipe, steps=1)
        cold = session.maps.raw("cat")
    with attach(pipe, [HeatMaps(), Temperature(factor=0.0)]) as session:
        generate(pipe, steps=1)
        uniform = session.maps.raw("cat")

    assert torch.allclose(uniform, torch.full_like(uniform, 1 / 77), atol=1e-5)
    assert not torch.allclose(cold, uniform, atol=1e-4)


def test_maps_are_of_the_chosen_layers_heads_and_steps() -> None:
    pipe = build("sd1")
    with attach(pipe, HeatMaps(keep_steps=True, keep_heads=True)) as session:
        generate(pipe, steps=3)
        whole = session.maps
        layer = whole.layers[0]
        by_step = [whole.raw("cat", layers=layer, steps=(i, i + 1)) for i in range(3)]
        by_head = [whole.raw("cat", layers=layer, heads=head) for head in range(2)]
    with attach(pipe, HeatMaps(where=f"path={layer}", steps="1-2")) as session:
        generate(pipe, steps=3)
        assert torch.equal(session.maps.raw("cat"), by_step[1])
        assert session.maps.layers == [layer]
    with attach(pipe, HeatMaps(where=f"path={layer}:heads=1")) as session:
        generate(pipe, steps=3)
        assert torch.allclose(session.maps.raw("cat"), by_head[1], atol=1e-6)

    assert torch.allclose(torch.stack(by_step).mean(0), whole.raw("cat", layers=layer), atol=1e-6)
    assert torch.allclose(torch.stack(by_head).mean(0), whole.raw("cat", layers=layer), atol=1e-6)


def test_maps_are_those_of_the_latest_run_and_outlive_the_session() -> None:
    pipe = build("sd1")
    with attach(pipe, HeatMaps()) as session:
        with pytest.raises(AttnctlError, match="call the pipeline first"):
            _ = session.maps
        generate(pipe, "a frog")
        generate(pipe, PROMPT)
        inside = session.maps.word("cat")

    assert torch.equal(session.maps.word("cat"), inside)


def test_a_session_without_heat_maps_says_how_to_get_them() -> None:
    with (
        attach(build("sd1"), Temperature()) as session,
        pytest.raises(AttnctlError, match=r"attach HeatMaps\(\.\.\.\)"),
    ):
        _ = session.maps


@pytest.mark.parametrize("words", [[""], [3], "  "])
def test_words_that_are_no_words_are_refused(words: Any) -> None:
    with pytest.raises(SettingError, match="words="):
        HeatMaps(words)


def test_no_map_of_a_long_sequence_is_ever_whole() -> None:
    pipe = build("flux")
    cells, text = 64 * 64, 16
    watch = Watch(where="index=0", needs_layout=True)
    sizes: list[int] = []

    class Meter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            parts = result if isinstance(result, tuple | list) else (result,)
            sizes.extend(part.numel() for part in parts if isinstance(part, Tensor))
            return result

    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden_states": torch.randn(1, cells, 16, generator=generator),
        "encoder_hidden_states": torch.randn(1, text, 32, generator=generator),
        "pooled_projections": torch.randn(1, 32, generator=generator),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(cells, 3),
        "txt_ids": torch.zeros(text, 3),
    }
    inputs["img_ids"][:, 1:] = torch.cartesian_prod(torch.arange(64.0), torch.arange(64.0))
    with attach(pipe.transformer, [watch]), torch.no_grad():
        pipe.transformer(**inputs)
    call = watch.seen[0]
    with Meter(), torch.no_grad():
        columns = call.columns(call.layout.text, None, call.layout.image)  # pyright: ignore[reportOptionalMemberAccess, reportArgumentType]
    whole = call.query.shape[1] * (cells + text) ** 2
    some = slice(100, 108)
    scores = call.query[:, :, some].double() @ call.key.double().transpose(-1, -2) * call.scale
    exact = scores.softmax(-1)[..., :text]

    assert max(sizes) < 0.05 * whole
    start = call.layout.image.start  # pyright: ignore[reportOptionalMemberAccess]
    found = columns[:, :, some.start - start : some.stop - start]
    assert (found - exact).abs().max() < 1e-5
