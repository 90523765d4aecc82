"""Tiny models of four families, and where they are perturbed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.techniques.masked_reference import Reference

GUIDANCE = 5.0


@dataclass(frozen=True)
class Model:
    """Where one tiny model is perturbed.

    Attributes:
        pipeline: Name of the tiny pipeline.
        where: Selector of the sites.
        paths: The same sites by name.
        text_first: Text before image tokens; None if they are not in one sequence.
        is_guided: Does the pipeline call the denoiser for two branches?
        is_batched: Do they share a batch?
    """

    pipeline: str
    where: str
    paths: tuple[str, ...]
    text_first: bool | None
    is_guided: bool = True
    is_batched: bool = True

    @property
    def own_rows(self) -> int:
        """Rows of one call of the pipeline for one picture."""
        return 2 if self.is_guided and self.is_batched else 1

    def reference(self, **settings: Any) -> Reference:
        """The guidance written plainly, at these sites."""
        guidance = GUIDANCE if self.is_guided else None
        return Reference(
            self.paths,
            self.text_first,
            guidance=guidance,
            is_batched=self.is_guided and self.is_batched,
            **settings,
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """What the pipeline is called with besides the usual."""
        return {"guidance_scale": GUIDANCE} if self.is_guided else {}

    def selector(self, heads: Sequence[int] | None = None) -> str:
        """Selector of the sites, with some of their heads."""
        chosen = "" if heads is None else f",heads={'+'.join(map(str, heads))}"
        return self.where + chosen


MODELS = {
    "sd3": Model("sd3", "layers=1,joint", ("transformer_blocks.1.attn",), False),
    "sd3 qk-norm": Model("sd35", "layers=1,joint", ("transformer_blocks.1.attn",), False),
    "sd3 dual, joint": Model("sd35", "layers=0,joint", ("transformer_blocks.0.attn",), False),
    "sd3 dual, image": Model("sd35", "layers=0,self", ("transformer_blocks.0.attn2",), False),
    "sd3 dual, both": Model(
        "sd35",
        "path=transformer_blocks.0.*",
        ("transformer_blocks.0.attn", "transformer_blocks.0.attn2"),
        False,
    ),
    "flux double": Model(
        "flux", "layers=1,joint", ("transformer_blocks.1.attn",), True, is_guided=False
    ),
    "flux single": Model(
        "flux", "layers=2,joint", ("single_transformer_blocks.0.attn",), True, is_guided=False
    ),
    "flux both": Model(
        "flux",
        "layers=1+3,joint",
        ("transformer_blocks.1.attn", "single_transformer_blocks.1.attn"),
        True,
        is_guided=False,
    ),
    "cogvideox": Model("cogvideox", "layers=1,joint", ("transformer_blocks.1.attn1",), True),
    "wan": Model("wan", "layers=1,self", ("blocks.1.attn1",), None, is_batched=False),
}
