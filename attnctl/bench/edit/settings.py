"""What the edit benchmark compares, for each model: what is tried, and what was chosen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnctl.bench.edit.methods import NOTHING, REGENERATE, SDEDIT, WAYS, Method
from attnctl.errors import SettingError

STRENGTHS = (0.4, 0.6, 0.75, 0.9)
"""Of SDEdit, so that success can be compared at equal preservation."""

BASELINES = (
    Method(NOTHING, "nothing"),
    Method(REGENERATE, "regenerate"),
    *(Method(f"{SDEDIT} [{s:g}]", "sdedit", {"strength": s}) for s in STRENGTHS),
)


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid_of(
    family: str, kind: str, fixed: Mapping[str, Any], **tried: Sequence[Any]
) -> list[Method]:
    """Every combination of the tried values, named after them."""
    methods: list[Method] = []
    for values in itertools.product(*tried.values()):
        named = dict(zip(tried, values, strict=True))
        shown = " ".join(f"{name}={_short(value)}" for name, value in named.items())
        methods.append(Method(f"{family} [{shown}]", kind, {**fixed, **named}))
    return methods


GRIDS: dict[str, list[Method]] = {
    "StableDiffusionPipeline": [
        *grid_of("FlowEdit", "flow-edit", {"source_guidance": 1.5},
                 target_guidance=(5.0, 7.5), share=(0.5, 0.7, 0.8)),
        *grid_of("PromptToPrompt", "technique", {"technique": "prompt-to-prompt"},
                 self_replace_steps=(0.4, 0.8)),
        *grid_of("PromptToPrompt blend", "technique",
                 {"technique": "prompt-to-prompt", "blend": True, "self_replace_steps": 0.6},
                 blend_threshold=(0.6, 0.75)),
        *grid_of("MasaCtrl", "technique", {"technique": "masa-ctrl"},
                 start_layer=(0, 4), steps=("0-", "2-")),
    ],
    "StableDiffusion3Pipeline": [
        *grid_of("FlowEdit", "flow-edit", {"source_guidance": 1.5},
                 target_guidance=(5.0, 7.5), share=(0.5, 0.7, 0.8)),
        *grid_of("RF-Inversion", "rf-inversion", {"eta": 1.0}, stop=(0.25, 0.35, 0.5)),
        *grid_of("StableFlow", "technique", {"technique": "stable-flow"},
                 layers=(None, "0-3", "0-7"), steps=("0-50%", "always"))[:-1],
        *grid_of("HeadRouter", "controlled", {"technique": "head-router", "eta": 1.0, "gamma": 0.2},
                 stop=(0.25, 0.35, 0.5)),
        *grid_of("HeadRouter", "controlled", {"technique": "head-router", "stop": 0.35},
                 eta=(0.8,), gamma=(0.4,)),
        *grid_of("FluxSpace", "controlled",
                 {"technique": "flux-space", "eta": 1.0, "stop": 0.25, "coarse": 0.8,
                  "tau": 0.0, "steps": "0-"},
                 fine=(1.0, 2.0, 3.0)),
    ],
}  # fmt: skip
"""What is tried, by names of pipeline classes."""

CHOSEN: dict[str, list[Method]] = {
    "StableDiffusionPipeline": [
        Method("FlowEdit", "flow-edit",
               {"source_guidance": 1.5, "target_guidance": 7.5, "share": 0.8}),
        Method("PromptToPrompt", "technique",
               {"technique": "prompt-to-prompt", "self_replace_steps": 0.8}),
        Method("PromptToPrompt blend", "technique",
               {"technique": "prompt-to-prompt", "blend": True, "self_replace_steps": 0.6,
                "blend_threshold": 0.6}),
        Method("MasaCtrl", "technique",
               {"technique": "masa-ctrl", "start_layer": 0, "steps": "0-"}),
    ],
    "StableDiffusion3Pipeline": [
        Method("FlowEdit", "flow-edit",
               {"source_guidance": 1.5, "target_guidance": 5.0, "share": 0.8}),
        Method("RF-Inversion", "rf-inversion", {"eta": 0.8, "stop": 0.35}),
        Method("StableFlow", "technique",
               {"technique": "stable-flow", "layers": "0-7", "steps": "0-50%"}),
        Method("HeadRouter", "controlled",
               {"technique": "head-router", "eta": 0.8, "gamma": 0.4, "stop": 0.35}),
        Method("FluxSpace", "controlled",
               {"technique": "flux-space", "eta": 1.0, "stop": 0.25, "coarse": 0.8,
                "tau": 0.0, "steps": "0-", "fine": 2.0}),
    ],
}  # fmt: skip
"""What was chosen on tuning edits, by names of pipeline classes; RF-Inversion as HeadRouter has it
inside, so that the table shows what the router adds."""


def methods_for(pipe: Any, *, tune: bool, choice: Path | None) -> list[Method]:
    """List what is compared on a pipeline: baselines, and a grid or the chosen methods.

    Raises:
        SettingError: nothing is known for this pipeline, or the file cannot be used.
    """
    name = type(pipe).__name__
    if tune and choice is not None:
        raise SettingError("--choice has nothing to choose with --tune; leave one of them out")
    if name not in GRIDS:
        raise SettingError(
            f"the edit benchmark knows no methods for {name}; it measures {', '.join(GRIDS)}"
        )
    chosen = GRIDS[name] if tune else read_choice(choice) if choice else CHOSEN.get(name, [])
    if not chosen:
        raise SettingError(
            "no settings were chosen for this model yet; choose some with --tune, and give the"
            " file that it writes with --choice"
        )
    return [*BASELINES, *chosen]


def read_choice(path: Path) -> list[Method]:
    """Read the methods that a tuning run chose.

    Raises:
        SettingError: the file cannot be read or used.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        methods = [Method(str(m["name"]), str(m["kind"]), dict(m["settings"])) for m in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingError(
            f"--choice {str(path)!r}: {error}; give the choice.json of a --tune run"
        ) from None
    unknown = [method.kind for method in methods if method.kind not in WAYS]
    if unknown:
        raise SettingError(f"--choice {str(path)!r}: there is no way to edit called {unknown[0]!r}")
    return methods


def choice_text(methods: Sequence[Method]) -> str:
    """Methods as :func:`read_choice` reads them."""
    return json.dumps([method.to_plain() for method in methods], indent=1) + "\n"
