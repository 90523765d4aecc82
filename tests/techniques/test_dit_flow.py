"""DiTFlow on CogVideoX and Wan: against a loop of its own, injection, off, company, mistakes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

import attnctl
from attnctl import DiTFlow, Technique, Where
from attnctl.editing.features import FeatureStore
from attnctl.errors import ConflictError, FeatureError, SettingError, UnsupportedModelError
from attnctl.ops.dit_flow import hard_motion_flow
from attnctl.report import Report
from attnctl.techniques.recorders import AttentionRecorder
from tests.core.samples import Climb
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import PROMPT, build, generate
from tests.support.projections import projected
from tests.techniques.clip_runs import Keep, clip, video

GIVEN = "a red dog on the blue photo"
WHAT = ("query", "key", "value")
FRAMES, SIDE = 3, 4  # of CogVideoX at the size of the tests
CELLS = SIDE * SIDE


def recorded(pipe: Any, **changes: Any) -> FeatureStore:
    """A run of another clip, kept as features."""
    store = FeatureStore()
    options = {"prompt": GIVEN, "seed": 5, "guidance_scale": 1.0, **changes}
    where = Where("joint|self")
    video(pipe, AttentionRecorder(store, what=WHAT, where=where), **options)
    return store


def dit_flow(features: FeatureStore | None = None, **settings: Any) -> DiTFlow:
    """Two moves in the first of two steps, large enough to show."""
    given = {"iterations": 2, "learning_rates": (0.05, 0.02), "steps": "0-1"}
    return DiTFlow(features, **{**given, **settings})


def moved(pipe: Any, *techniques: Technique, **options: Any) -> tuple[Tensor, Report]:
    with attnctl.attach(pipe, techniques) as session:
        return generate(pipe, **options), session.report()


class WrittenOut:
    """CogVideoX's attention written out; keeps query and key, may take keys and values over."""

    def __init__(self) -> None:
        self.query = self.key = torch.zeros(0)
        self.given: tuple[Tensor, Tensor] | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        length = encoder_hidden_states.shape[1]
        both = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query, key, value = projected(attn, both)
        query, key = (
            torch.cat(
                [x[:, :, :length], apply_rotary_emb(x[:, :, length:], image_rotary_emb)], dim=2
            )
            for x in (attn.norm_q(query), attn.norm_k(key))
        )
        if self.given is not None:
            key, value = (
                torch.cat(
                    [own[:, :, :length], taken[:, :, length:].expand(len(own), -1, -1, -1)], 2
                )
                for own, taken in zip((key, value), self.given, strict=True)
            )
        self.query, self.key = query[:, :, length:], key[:, :, length:]
        probs = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
        out = attn.to_out[0]((probs @ value).transpose(1, 2).flatten(2))
        return out[:, length:], out[:, :length]


def flow_of(query: Tensor, key: Tensor, *, is_hard: bool) -> Tensor:
    """Motion flow of one clip, ``(F, F, n, 2)``, with a map for each head."""
    logits = torch.stack([q @ k.T / q.shape[-1] ** 0.5 for q, k in zip(query, key, strict=True)])
    places = torch.tensor([(i % SIDE, i // SIDE) for i in range(CELLS)]).to(logits)
    rows: list[Tensor] = []
    for a in range(FRAMES):
        for b in range(FRAMES):
            one = logits.mean(0)[a * CELLS : (a + 1) * CELLS, b * CELLS : (b + 1) * CELLS]
            probs = (2 * one).softmax(-1)
            if is_hard:
                probs = torch.nn.functional.one_hot(one.argmax(-1), CELLS).to(probs)
            rows.append(probs @ places - places)
    return torch.stack(rows).unflatten(0, (FRAMES, FRAMES))


def distance(reference: Tensor, flow: Tensor) -> Tensor:
    moves = reference.norm(dim=-1) > 0
    return torch.nn.functional.mse_loss(flow[moves], reference[moves])


def written_out(pipe: Any, store: FeatureStore, rates: list[float], iterations: int) -> Tensor:
    """The whole run by hand: gradients, Adam, injection, guidance, scheduler."""
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(PROMPT, None, True, 1, max_sequence_length=16)
    first, middle = WrittenOut(), WrittenOut()
    for block, processor in zip(pipe.transformer.transformer_blocks, (first, middle), strict=True):
        block.attn1.set_processor(processor)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, FRAMES, 4, 8, 8, generator=generator, dtype=positive.dtype)
    rotary = pipe._prepare_rotary_positional_embeddings(64, 64, FRAMES, torch.device("cpu"))
    clean, paths = min(store.timesteps), [f"transformer_blocks.{i}.attn1" for i in range(2)]
    text = store.get(clean, paths[1], "query").shape[2] - FRAMES * CELLS
    given = [store.get(clean, paths[1], what)[0][:, text:] for what in ("query", "key")]
    reference = flow_of(*given, is_hard=True)
    pipe.scheduler.set_timesteps(2)

    def predict(x: Tensor, told: Tensor, words: Tensor) -> Tensor:
        return pipe.transformer(
            x, words, told.expand(len(x)), image_rotary_emb=rotary, return_dict=False
        )[0]

    for index, told in enumerate(pipe.scheduler.timesteps):
        guided = index < len(rates)
        kept = tuple(store.get(float(told), paths[0], w) for w in ("key", "value"))
        first.given = kept if guided else None
        leaf = latents.clone().requires_grad_()
        optimiser = torch.optim.Adam([leaf], lr=rates[index] if guided else 0.0)
        for _ in range(iterations if guided else 0):
            optimiser.zero_grad()
            with torch.enable_grad():
                predict(leaf, told, positive)
                flow = flow_of(middle.query[0], middle.key[0], is_hard=False)
                distance(reference, flow).backward()
            optimiser.step()
        latents = leaf.detach()
        with torch.no_grad():
            both = predict(torch.cat([latents] * 2), told, torch.cat([negative, positive]))
        away, towards = both.float().chunk(2)
        noise = away + 6 * (towards - away)
        latents = pipe.scheduler.step(noise, told, latents, return_dict=False)[0].to(latents)
    return latents


def test_a_run_equals_one_written_out() -> None:
    pipe = build("cogvideox").to(torch.float64)
    store = recorded(pipe)
    plain = video(pipe)
    ours, report = moved(pipe, dit_flow(store, iterations=3, steps="always"))
    theirs = written_out(build("cogvideox").to(torch.float64), store, [0.05, 0.035], 3)
    assert [entry.evaluations for entry in report.losses] == [3, 3]
    assert (theirs - plain).abs().max() > 0.05
    assert (ours - theirs).abs().max() < 2e-3


def test_the_first_fifth_is_the_default_and_off_changes_no_bit() -> None:
    pipe = build("cogvideox")
    store, plain = recorded(pipe), video(pipe)
    before = fingerprint(pipe)
    for off in (
        DiTFlow(),
        dit_flow(),
        dit_flow(store, inject=False, iterations=0),
        dit_flow(store, inject=False, learning_rates=(0, 0)),
        dit_flow(store, steps="0-0"),
        dit_flow(store, steps=attnctl.after(9)),
    ):
        ours, report = moved(pipe, off)
        assert torch.equal(ours, plain)
        assert report.losses == []
    assert differences(before, fingerprint(pipe)) == []
    assert DiTFlow(store).steps.active_steps(50) == tuple(range(10))


def test_no_moves_leave_the_injection_alone() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    injected, report = moved(pipe, dit_flow(store, iterations=0))
    assert report.losses == []
    assert torch.equal(moved(pipe, dit_flow(store, learning_rates=(0, 0)))[0], injected)
    assert not torch.allclose(injected, video(pipe), atol=1e-4)
    both = moved(pipe, dit_flow(store))[0]
    assert not torch.allclose(both, injected, atol=1e-4)


def test_keys_and_values_of_the_clip_itself_change_no_bit() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe, prompt=PROMPT, seed=0)
    plain = video(pipe, guidance_scale=1.0)
    own = dit_flow(store, iterations=0, steps="always")
    assert torch.equal(video(pipe, own, guidance_scale=1.0), plain)


@pytest.mark.parametrize("name", ["cogvideox", "wan"])
def test_image_tokens_of_the_first_layer_alone_take_over_keys_and_values(name: str) -> None:
    pipe = build(name)
    store, kept = recorded(pipe), Keep(where=Where("joint|self"))
    video(pipe, dit_flow(store, iterations=0), kept)
    at_first = [call for call, _ in kept.calls if call.step.index == 0 and call.site.layer == 0]
    assert at_first
    for call in at_first:
        assert call.layout is not None
        image = call.layout.image
        for what, tensor in (("key", call.key), ("value", call.value)):
            taken = store.get(call.step.timestep, call.site.path, what)
            for row in tensor:
                assert torch.equal(row[:, image], taken[0][:, image])
        if image.start:
            text = store.get(call.step.timestep, call.site.path, "key")[0]
            assert not torch.equal(call.key[-1][:, : image.start], text[:, : image.start])
    later = [call for call, _ in kept.calls if call.step.index == 1 and call.site.layer == 0]
    for call in later:
        taken = store.get(call.step.timestep, call.site.path, "key")
        assert not torch.equal(call.key[-1], taken[0])


@pytest.mark.parametrize("name", ["cogvideox", "wan", "wan22"])
def test_moves_bring_the_flow_nearer_to_the_reference(name: str) -> None:
    pipe = build(name)
    store = recorded(pipe)
    _, once = moved(pipe, dit_flow(store, iterations=1))
    ours, often = moved(pipe, dit_flow(store, iterations=8))
    assert ours.isfinite().all()
    assert 0 < often.losses[0].losses[0] < once.losses[0].losses[0]


def test_the_text_of_the_given_clip_does_not_enter_its_flow() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    clean = min(store.timesteps)
    plain = moved(pipe, dit_flow(store, inject=False))[0]
    for what in ("query", "key"):
        changed = store.get(clean, "transformer_blocks.1.attn1", what).clone()
        changed[:, :, : -FRAMES * CELLS] += 9.0
        store.put(clean, "transformer_blocks.1.attn1", what, changed)
    assert torch.equal(moved(pipe, dit_flow(store, inject=False))[0], plain)


def test_a_flow_can_be_given_in_place_of_features() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    clean, path = min(store.timesteps), "transformer_blocks.1.attn1"
    image = slice(-FRAMES * CELLS, None)
    query, key = (store.get(clean, path, what)[0][:, image] for what in ("query", "key"))
    motion = hard_motion_flow(query, key, (FRAMES, SIDE, SIDE))
    by_features = moved(pipe, dit_flow(store, inject=False))[0]
    assert torch.equal(moved(pipe, dit_flow(motion=motion))[0], by_features)
    other = moved(pipe, dit_flow(motion=-motion))[0]
    assert not torch.allclose(other, by_features, atol=1e-4)
    still, report = moved(pipe, dit_flow(motion=torch.zeros_like(motion)))
    assert torch.equal(still, video(pipe))
    assert [(e.evaluations, e.losses) for e in report.losses] == [(1, (0.0,))]


def test_layers_and_heads_can_be_chosen() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    results = [
        moved(pipe, dit_flow(store, where=where))[0]
        for where in ("joint,layers=1", "layers=0", "joint", "layers=1,heads=1")
    ]
    assert torch.equal(results[0], moved(pipe, dit_flow(store))[0])
    for place, one in enumerate(results):
        for other in results[:place]:
            assert not torch.allclose(one, other, atol=1e-4)


def test_items_of_a_batch_are_moved_as_if_they_were_alone() -> None:
    pipe = build("cogvideox").to(torch.float64)
    store = recorded(pipe)
    prompts = [PROMPT, GIVEN]
    both, report = moved(pipe, dit_flow(store), prompt=prompts)
    for place, prompt in enumerate(prompts):
        alone = moved(pipe, dit_flow(store), prompt=prompt, seed=place)[0]
        assert (both[place] - alone[0]).abs().max() < 1e-3
    assert len(report.losses[0].losses) == 2


def test_only_the_conditional_row_runs_and_only_to_the_guided_layer() -> None:
    pipe = build("cogvideox")
    store, ran = recorded(pipe), []
    for name in ("patch_embed", "proj_out"):
        getattr(pipe.transformer, name).register_forward_hook(
            lambda _, given, out, name=name: ran.append((name, len(out)))
        )
    moved(pipe, dit_flow(store))
    assert ran == [("patch_embed", 1)] * 2 + [("patch_embed", 2), ("proj_out", 2)] * 2


def test_checkpointing_changes_nothing_but_memory() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    usual = moved(pipe, dit_flow(store))[0]
    pipe.transformer.enable_gradient_checkpointing()
    assert torch.allclose(moved(pipe, dit_flow(store))[0], usual, atol=1e-3)


def test_an_inversion_of_a_clip_gives_the_features() -> None:
    from attnctl.inversion import invert

    pipe, store = build("cogvideox"), FeatureStore()
    clean = video(pipe, prompt=GIVEN, seed=5)
    recorders = [
        AttentionRecorder(store, where=Where("layers=1"), steps=attnctl.until(1)),
        AttentionRecorder(
            store, what=("key", "value"), where=Where("layers=0"), steps=attnctl.after(0.8)
        ),
    ]
    options = {"num_frames": 9, "max_sequence_length": 16}
    invert(pipe, clean, GIVEN, steps=5, techniques=recorders, options=options)
    assert len(store.timesteps) == 2  # the cleanest for the flow, the noisiest to take over
    _, report = moved(pipe, DiTFlow(store), steps=5)
    assert [(e.step, e.evaluations) for e in report.losses] == [(0, 5)]
    assert report.losses[0].losses[0] > 0


def test_it_goes_with_guidance_and_with_edits_of_the_output() -> None:
    pipe = build("cogvideox")
    store = recorded(pipe)
    added = attnctl.SoftPAG(scale=2.0, where="joint,layers=1")
    results = [
        moved(pipe, *techniques)[0]
        for techniques in ((dit_flow(store),), (added,), (dit_flow(store), added))
    ]
    for place, one in enumerate(results):
        assert one.isfinite().all()
        for other in results[:place]:
            assert not torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(moved(pipe, added, dit_flow(store))[0], results[2], atol=1e-4)


def test_another_technique_that_moves_latents_is_refused_at_its_steps() -> None:
    pipe = build("wan")
    store = recorded(pipe)
    with pytest.raises(ConflictError, match=r"'dit-flow'.*both move the latents"):
        video(pipe, dit_flow(store), Climb())
    assert video(pipe, dit_flow(store), Climb(steps="1-2")).isfinite().all()


@pytest.mark.parametrize("name", ["sd1", "animatediff"])
def test_models_without_attention_over_all_frames_are_refused(name: str) -> None:
    motion = torch.zeros(FRAMES, FRAMES, 64, 2)
    with pytest.raises(UnsupportedModelError, match=r"over all frames.*CogVideoX, Wan"):
        (clip if name == "sd1" else video)(build(name), dit_flow(motion=motion))


def test_what_does_not_fit_is_refused_before_the_first_step() -> None:
    pipe, wan = build("cogvideox"), build("wan")
    store = recorded(pipe)
    with pytest.raises(SettingError, match=r"3 frames of 4 x 4 cells, which is \(3, 3, 16, 2\)"):
        video(pipe, dit_flow(motion=torch.zeros(2, 2, 16, 2)))
    with pytest.raises(UnsupportedModelError, match="cross attention"):
        video(wan, dit_flow(motion=torch.zeros(3, 3, 16, 2), where="cross"))
    with pytest.raises(FeatureError, match="does not fit this one"):
        video(wan, dit_flow(store))
    with pytest.raises(FeatureError, match="empty"):
        video(pipe, dit_flow(FeatureStore()))
    partial = FeatureStore()
    video(pipe, AttentionRecorder(partial, what=WHAT, where="layers=1"), guidance_scale=1.0)
    with pytest.raises(FeatureError, match=r"dit-flow: the features lack transformer_blocks\.0"):
        video(pipe, dit_flow(partial))
    assert video(pipe, dit_flow(partial, inject=False)).isfinite().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"motion": [1.0]},
        {"motion": torch.zeros(2, 3, 4, 2)},
        {"motion": torch.full((2, 2, 4, 2), torch.nan)},
        {"iterations": -1},
        {"iterations": 1.5},
        {"learning_rates": 0.002},
        {"learning_rates": (0.002, -1)},
        {"motion_temp": -1},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="dit-flow: "):
        DiTFlow(**settings)
