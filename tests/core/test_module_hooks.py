"""Hooks on modules of a denoiser: when they act, what they edit, and that nothing stays behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import attnctl
from attnctl import PAG, SEG, SLG, TPG, SoftPAG, Technique, attach
from attnctl.blocks import ModelParts
from attnctl.calls import AddedRow, Needs, PredictionCall
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import AlreadyAttachedError, CompiledModelError, LayerNotFoundError
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate

MID = "mid_block.attentions.0.transformer_blocks.0"


@dataclass(frozen=True)
class Louder(Technique):
    """Edits the input and the output of one module, for every row."""

    name: ClassVar[str] = "louder"
    path: str = MID
    gain: float = 1.5
    error: type[BaseException] | None = None
    seen: list[ModuleCall] = field(default_factory=list[ModuleCall], compare=False)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        return (ModuleHook(self.path, "before", "enter"), ModuleHook(self.path, "after", "leave"))

    def enter(self, call: ModuleCall) -> None:
        if self.error is not None:
            raise self.error("a fault inside a hook")
        call.arguments["hidden_states"] = call.arguments["hidden_states"] * self.gain

    def leave(self, call: ModuleCall) -> None:
        call.output = call.output / self.gain
        self.seen.append(call)


def test_a_hook_edits_what_goes_in_and_what_comes_out() -> None:
    pipe = build("sd1")
    block = pipe.unet.get_submodule(MID)

    def scale_input(module: Any, args: Any) -> Any:
        return (args[0] * 1.5, *args[1:])

    before = block.register_forward_pre_hook(scale_input)
    after = block.register_forward_hook(lambda module, args, output: output / 1.5)
    by_hand = generate(pipe)
    before.remove()
    after.remove()
    with attach(pipe, Louder()):
        assert torch.equal(generate(pipe), by_hand)
    assert not torch.equal(generate(pipe), by_hand)


def test_a_hook_sees_rows_step_strength_and_state() -> None:
    pipe, louder = build("sd1"), Louder(steps=attnctl.ramp(1.0, 0.5))
    with attach(pipe, louder):
        generate(pipe)
    assert [call.step.index for call in louder.seen] == [0, 1]
    assert [call.strength for call in louder.seen] == [1.0, 0.5]
    call = louder.seen[0]
    assert (call.path, call.owner) == (MID, "louder")
    assert [row.branch for row in call.rows] == ["uncond", "cond"]
    assert call.pick(call.output, branch="cond").tolist() == [1]


def test_modules_are_hooked_in_active_steps_alone_and_idle_ones_are_bit_identical() -> None:
    pipe = build("sd1")
    plain, block = generate(pipe, steps=3), pipe.unet.get_submodule(MID)
    replaced: list[bool] = []
    hook = pipe.unet.conv_in.register_forward_hook(
        lambda *_: replaced.append("forward" in block.__dict__)
    )
    with attach(pipe, Louder(steps="1-2")):
        generate(pipe, steps=3)
    with attach(pipe, Louder(steps="7-9")):
        assert torch.equal(generate(pipe, steps=3), plain)
    hook.remove()
    assert replaced == [False, True, False] + [False] * 3


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_a_hook_restores_everything(error: type[BaseException]) -> None:
    pipe = build("sd1")
    plain, before = generate(pipe), fingerprint(pipe)
    with pytest.raises(error, match="a fault"), attach(pipe, Louder(error=error)):
        generate(pipe)
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


@pytest.mark.parametrize("techniques", [[SLG(blocks=(1,), steps="always")], [PAG()]])
def test_an_interrupt_with_added_rows_restores_everything(techniques: list[Technique]) -> None:
    pipe = build("sd1")
    plain, before = generate(pipe), fingerprint(pipe)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    hook = pipe.unet.mid_block.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), attach(pipe, techniques):
        generate(pipe)
    hook.remove()
    assert differences(before, fingerprint(pipe)) == []
    assert torch.equal(generate(pipe), plain)


def test_a_failure_half_way_through_hooking_restores_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = build("sd1")
    generate(pipe)
    before, first = fingerprint(pipe), [True]
    from attnctl.engine import module_edits

    whole = module_edits.replaced_forward

    def once(module: nn.Module, function: Any) -> Any:
        if not first.pop():
            raise MemoryError("at the second module, say")
        first.append(False)
        return whole(module, function)

    monkeypatch.setattr(module_edits, "replaced_forward", once)
    with pytest.raises(MemoryError), attach(pipe, TPG(blocks=(0, 1))):
        generate(pipe)
    assert differences(before, fingerprint(pipe)) == []


def test_a_module_that_is_not_there_is_refused_before_anything_changes() -> None:
    pipe = build("sd1")
    before = fingerprint(pipe)
    with pytest.raises(LayerNotFoundError, match=r'no module "mid_block\.attentions\.1"'):
        attach(pipe, [PAG(), Louder(path="mid_block.attentions.1")])
    assert differences(before, fingerprint(pipe)) == []


def test_a_compiled_model_is_refused_at_attach_and_if_it_is_compiled_later() -> None:
    pipe = build("sd1")
    block = pipe.unet.get_submodule(MID)
    session = attach(pipe, Louder())
    before = fingerprint(pipe)
    block.compile(backend="eager")
    with pytest.raises(CompiledModelError, match="louder"):
        generate(pipe)
    session.detach()
    with pytest.raises(CompiledModelError, match=r"torch\.compile"):
        attach(pipe, Louder())
    del block._compiled_call_impl
    session = attach(pipe, Louder())
    assert [d for d in differences(before, fingerprint(pipe)) if "pipe" not in d] == []
    session.detach()


def test_module_hooks_cannot_be_served_by_processors_alone() -> None:
    pipe = build("sd1")
    with pytest.raises(attnctl.AttnctlError, match="module_hooks"):
        attnctl.attn_processors(pipe.unet, Louder())


# --- several techniques with added rows --------------------------------------------------------


@dataclass(frozen=True)
class Term(Technique):
    """Keeps the sum of the terms that the techniques before it added."""

    name: ClassVar[str] = "term"
    terms: list[torch.Tensor] = field(default_factory=list[torch.Tensor], compare=False)

    def edit_prediction(self, call: PredictionCall) -> None:
        assert call.delta is not None
        self.terms.append(call.delta)


def term_of(pipe: Any, *techniques: Technique) -> torch.Tensor:
    term = Term()
    with attach(pipe, [*techniques, term]):
        generate(pipe, steps=1)
    return term.terms[0]


ROUNDING = 2e-5  # terms are differences of predictions of size 1, from batches of other sizes

PAIRS = {
    "two head sets": (SoftPAG(where="mid:self,heads=0"), SoftPAG(where="mid:self,heads=1")),
    "two places": (SoftPAG(where="mid:self"), SoftPAG(scale=1.0, where="up:self")),
    "SoftPAG and PAG": (SoftPAG(strength=0.5), PAG(where="up:self")),
    "SoftPAG and SEG": (SoftPAG(), SEG()),
    "SEG and SLG": (SEG(), SLG(blocks=(1,), steps="always")),
    "SLG and TPG": (SLG(blocks=(1,), steps="always"), TPG(blocks=(1,))),
    "two TPG": (TPG(blocks=(1,)), TPG(blocks=(1,), seed=1)),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_the_terms_of_two_techniques_add_up(pair: str) -> None:
    pipe = build("sd1")
    first, second = PAIRS[pair]
    alone = [term_of(pipe, first), term_of(pipe, second)]
    both = term_of(pipe, first, second)
    assert min(float(one.abs().max()) for one in alone) > 1e-3
    assert torch.allclose(both, alone[0] + alone[1], atol=ROUNDING)


@pytest.mark.parametrize("name", ["sd3", "flux", "wan", "pixart_sigma"])
def test_the_terms_of_four_techniques_add_up_on_transformers(name: str) -> None:
    pipe = build(name)
    where = "layers=1,joint" if name in ("sd3", "flux") else "layers=1,self"
    four: tuple[Technique, ...] = (
        SoftPAG(where=where),
        SEG(where=where),
        SLG(blocks=(1,), steps="always"),
        TPG(blocks=(0,)),
    )
    total = sum(term_of(pipe, one) for one in four)
    both = term_of(pipe, *four)
    assert torch.allclose(both, total, atol=ROUNDING)


def test_a_second_technique_of_a_kind_has_a_number_and_a_state_of_its_own() -> None:
    pipe = build("sd1")
    pair = PAIRS["two head sets"]
    with attach(pipe, list(pair)) as session:
        generate(pipe)
    report = session.report()
    assert list(report.settings) == ["soft-pag", "soft-pag#2"]
    assert report.active_steps("soft-pag#2") == (0, 1)
    with attach(pipe, pair[0]), attach(pipe, pair[1]) as second:
        generate(pipe)
        assert second.report().active_steps("soft-pag#2") == (0, 1)


@pytest.mark.parametrize("technique", [SoftPAG(), SEG(), SLG(blocks=(1,)), TPG(blocks=(1,))])
def test_the_same_settings_twice_are_refused(technique: Technique) -> None:
    pipe = build("sd1")
    twin = type(technique).from_settings(technique.settings())
    with pytest.raises(AlreadyAttachedError, match=r"twice with equal settings; detach"):
        attach(pipe, [technique, twin])


@dataclass(frozen=True)
class OtherText(Technique):
    """An added row that is given another text than the row it shadows."""

    name: ClassVar[str] = "other-text"
    text: torch.Tensor | None = field(default=None, compare=False)

    def needs(self) -> Needs:
        arguments = {"encoder_hidden_states": torch.zeros(1, 77, 32)}
        return Needs(rows=(AddedRow("other", arguments=arguments),))

    def edit_prediction(self, call: PredictionCall) -> None:
        call.add(call.get("cond") - call.get("cond", "other"))


def test_rows_with_arguments_of_their_own_are_never_replayed() -> None:
    pipe = build("sd1")
    late = SoftPAG(where="up:self")
    total = term_of(pipe, late) + term_of(pipe, OtherText())
    assert torch.allclose(term_of(pipe, late, OtherText()), total, atol=1e-4)
