"""The examples of docs/interoperability.md run, each beside its part of diffusers."""

import re
from pathlib import Path

import pytest

import attnctl
from attnctl import HeatMaps, SoftPAG
from tests.support.fingerprint import differences, fingerprint
from tests.support.pipelines import build, generate, ip_adapter_state, picture

PAGE = Path(__file__).parents[1] / "docs" / "interoperability.md"
EXAMPLES = dict(
    re.findall(r"^```python ([a-z-]+)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
)
SHAPES = ("lora", "offload", "compile", "modular")


@pytest.fixture
def names():
    return {
        "attnctl": attnctl,
        "HeatMaps": HeatMaps,
        "SoftPAG": SoftPAG,
        "steering": SoftPAG(scale=2.0, where="down:self"),
        "prompt": "a red circle and a blue square",
        "backend": "eager",
    }


def run(name, names):
    exec(compile(EXAMPLES[name], f"{PAGE.name}:{name}", "exec"), names)
    return names


def test_every_example_is_run():
    assert set(EXAMPLES) == {*SHAPES, "ip-adapter", "controlnet"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_an_example_on_shapes_runs(names, name):
    if name == "lora":
        pytest.importorskip("peft")
    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    made = run(name, {**names, "pipe": pipe})
    assert made["image"].size == (64, 64)


def test_the_example_with_an_ip_adapter_runs_and_restores_its_processors(names):
    pipe = build("sd1")
    adapter = ip_adapter_state(pipe.unet)
    names |= {"pipe": pipe, "photo": picture(), "prompt": "a cat"}
    run("ip-adapter", {**names, "adapter": adapter, "folder": "", "name": ""})
    loaded = [type(processor).__name__ for processor in pipe.unet.attn_processors.values()]
    assert any("IPAdapter" in name for name in loaded)


def test_the_example_with_a_controlnet_runs_and_restores(names):
    pipe = build("sd1_controlnet")
    generate(pipe)  # a pipeline's first call sets attributes of its own
    before = fingerprint(pipe)
    names |= {"pipe": pipe, "edges": picture(), "prompt": "a cat"}
    run("controlnet", names)
    assert differences(before, fingerprint(pipe)) == []
