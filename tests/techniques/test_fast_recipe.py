"""The shipped recipe of fast and steered attention, at few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

import attnctl
from attnctl.pipelines.text_to_image import draw
from attnctl.recipes import Recipe

PATH = Path(__file__).parents[2] / "examples" / "fast-and-steered.yaml"
STEPS = 8


@pytest.fixture(scope="module")
def made():
    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    recipe = Recipe.from_file(PATH)
    (picture,) = draw(pipe, recipe.changed(steps=STEPS))
    return picture


def test_all_three_act_in_one_run(made):
    acting = {name for entry in made.report["entries"] for name in entry["techniques"]}
    acting |= {loss["technique"] for loss in made.report["losses"]}
    assert acting == {"re-ttention", "attend-and-excite", "soft-pag"}
    assert [loss["step"] for loss in made.report["losses"]] == [0, 1, 2, 3]
    assert made.image.size == (128, 128)


def test_the_report_tells_which_kernel_served_which_site(made):
    served: dict[str, set[str]] = {}
    for entry in made.report["entries"]:
        if entry["pass_kind"] == "main" and "re-ttention" in entry["techniques"]:
            served.setdefault(entry["site"], set()).update(entry["kernel"].split("+"))
    places = ("down_blocks.0.attentions.0", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")
    finest = [f"unet.{place}.transformer_blocks.0.attn1" for place in places]
    assert set(served) == set(finest)
    for kernels in served.values():
        assert kernels == {"sdpa-lse", "cpu-gather"}  # refreshes, and the steps between them
    losses = {e["kernel"] for e in made.report["entries"] if e["pass_kind"] == "gradient"}
    assert "cpu-gather" not in losses


def test_the_table_names_kernels_and_the_share_of_pairs_that_is_kept(made):
    (line,) = [line for line in made.summary.splitlines() if line.startswith("re-ttention ")]
    assert "cpu-gather" in line
    assert "sdpa-lse" in line
    assert "keeps 9.8% of the pairs of 1024 tokens" in made.summary
    assert "cache of re-ttention" in made.summary
