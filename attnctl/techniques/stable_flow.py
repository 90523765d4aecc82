"""Stable Flow: image keys and values of a source picture, in the vital layers of a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from attnctl.calls import AttentionCall, Needs, RunStart
from attnctl.editing.items import check_items
from attnctl.editing.paired_rows import edited_items, joined_pairs, paired_rows
from attnctl.editing.prompt_edits import as_tuples
from attnctl.errors import SettingError, UnsupportedModelError
from attnctl.ops.mutual_attention import shared_rows
from attnctl.registry import register
from attnctl.sites import Site
from attnctl.technique import Technique
from attnctl.vital_layers.layers import VitalLayers, known_layers
from attnctl.where import Where

JOINT = Where("joint")


@register("stable-flow")
@dataclass(frozen=True)
class StableFlow(Technique):
    """Edit a picture with a transformer: vital layers of the target read the source's image.

    Source and target are items of one batch, ``prompt=[source, target]`` with equal latents. In
    the vital layers, image keys and values of the target are those of the source; its queries and
    its text stay its own. The source is never touched. Each guidance branch takes from its own
    branch and a ramp in ``steps`` mixes: both are additions to the paper, whose model has no
    branches. Another model than FLUX.1 needs its own layers: ``attnctl vital-layers`` finds them.

    Attributes:
        layers: Vital layers: numbers of joint layers (FLUX.1's single blocks count on behind its
            double ones), a set that ``attnctl vital-layers`` found, or its file. By default those
            that are known for the model: FLUX.1 and the bundled models.
        source: Item of the batch that is kept.
        target: Item, or items, that are edited.
        where: Joint attention instead of ``layers``, for example single heads.
    """

    reference: ClassVar[str] = (
        "Avrahami et al., CVPR 2025, arXiv 2411.14430; the search for layers is reconstructed, its "
        "threshold and features are not in the release"
    )
    families: ClassVar[str] = "FLUX.1, SD3 and SD3.5 (joint attention)"
    claims: ClassVar[frozenset[str]] = frozenset({"kv"})

    layers: Any = None
    source: int = 0
    target: Any = 1
    where: Where = field(default=JOINT, kw_only=True)

    __hash__ = object.__hash__

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "target", as_tuples(self.target))
        if self.layers is not None:
            object.__setattr__(self, "layers", VitalLayers.parse(self.layers))
            if self.where != JOINT:
                raise SettingError(
                    f"{self.name}: layers= names the layers; leave out where={self.where!s}"
                )
        edited_items(self.name, self.source, self.target)

    def settings(self) -> dict[str, Any]:
        chosen = None if self.layers is None else list(self.layers.layers)
        return {**super().settings(), "layers": chosen}

    @property
    def targets(self) -> tuple[int, ...]:
        """Items that are edited."""
        return edited_items(self.name, self.source, self.target)

    def strength_at(self, index: int, total: int | None) -> float:
        has_layers = self.layers is None or bool(self.layers.layers)
        return self.steps.strength(index, total) if has_layers else 0.0

    def needs(self) -> Needs:
        return Needs(couples=True, layout=True)

    def select(self, sites: Sequence[Site], model: str) -> Where:
        joint = [site for site in sites if site.kind == "joint"]
        if not joint:
            raise UnsupportedModelError(
                f"{self.name} shares the image tokens of joint attention, which this model has not "
                f"got ({sites[0].path} is {sites[0].kind}-attention); on a UNet use masa-ctrl"
            )
        if self.where != JOINT:
            return self.where
        chosen = known_layers(self.name, joint, model) if self.layers is None else self.layers
        chosen.check(joint, model)
        return chosen.where()

    def begin(self, run: RunStart) -> None:
        check_items(self.name, run.items, source=self.source, target=self.targets)
        kinds = {site.kind for site in run.sites}
        unknown = [path for path, layout in run.layouts.items() if layout is None]
        if kinds - {"joint"} or unknown:
            raise UnsupportedModelError(
                f"{self.name} works at joint attention whose image tokens are known; where="
                f"{str(self.where)!r} selects {', '.join(sorted(kinds))} sites"
            )

    def edit_qkv(self, call: AttentionCall) -> None:
        pairs = paired_rows(call, self.source, self.targets)
        if not pairs or call.layout is None:
            return
        source, target = joined_pairs(pairs)
        image = call.layout.image
        for name in ("key", "value"):
            tensor = getattr(call, name)
            shared = shared_rows(
                tensor, source, target,
                tokens=image, strength=call.strength, heads=call.heads,
            )  # fmt: skip
            setattr(call, name, shared)
