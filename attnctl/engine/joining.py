"""Hand the techniques' guidance to a pipeline that joins its branches itself.

Usually the terms that techniques add are put on every branch: ``u + s (c - u)``, and any other
formula whose weights sum to one, passes them on. Where that is not exact, because the pipeline or
a technique rescales, or because a technique replaces the formula, the branches are joined here,
in fp32, and every branch is given the result, which the pipeline's formula then leaves alone.
A pipeline that calls its denoiser once a branch has its conditional prediction already; there the
unconditional one is solved for.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnctl.calls import PredictionCall, Row, Rows
from attnctl.engine.predictions import Guidance
from attnctl.engine.run import Kept, Run
from attnctl.errors import UnsupportedModelError
from attnctl.families import Family
from attnctl.ops.guidance import (
    classifier_free,
    image_guidance,
    rescale_deviation,
    solve_uncond,
)
from attnctl.technique import Technique

if TYPE_CHECKING:
    from attnctl.engine.denoiser import DenoiserDriver

SMALLEST_SOLVED_SCALE = 1.1  # below it the division by s - 1 magnifies rounding tenfold and more


def joined_prediction(
    driver: "DenoiserDriver",
    run: Run,
    call: PredictionCall,
    editors: Sequence[Technique],
) -> Tensor:
    """Let techniques edit the prediction of one call.

    Args:
        driver: The denoiser.
        run: The run that is open.
        call: Prediction of all rows, added ones behind the pipeline's.
        editors: Active techniques with a prediction phase.

    Returns:
        What the pipeline gets: prediction of the main rows, dtype of ``call.prediction``.

    Raises:
        UnsupportedModelError: the branches cannot be joined as a technique wants it.
    """
    if run.clock.calls == 0:
        return _first_call(driver, run, call, editors)
    kept = run.kept
    if kept is None:
        return call.main()
    if kept.cond is not None and call.has("uncond"):
        return _solved(driver, call, kept, kept.cond, editors)
    return call.main() if kept.shift is None else _shifted(call, kept.shift)


def refuse_guidance(driver: "DenoiserDriver", guidance: Guidance, rows: Rows) -> None:
    """Refuse techniques that must join the branches themselves where that cannot be done.

    Args:
        driver: The denoiser, at the first call of a run.
        guidance: What the pipeline says of its guidance.
        rows: Rows of that call.

    Raises:
        UnsupportedModelError: naming the techniques, the reason and a remedy.
    """
    wanting = [t for t in _acting(driver) if owns_guidance(t) or t.needs().guidance]
    branches = {row.branch for row in rows}
    is_batched = len(branches) > 1
    if not wanting or not (is_batched or _is_awaited(driver.family, guidance)):
        return
    names = _names(driver, wanting)
    if _renormalises(driver.family, guidance):
        raise UnsupportedModelError(
            f"{names} must put one prediction through this pipeline's guidance, but the pipeline "
            "calls its denoiser several times a step and renormalises the result; drop the "
            "technique (or its rescale)"
        )
    owners = [t for t in wanting if owns_guidance(t)]
    if owners and branches - {"cond", "uncond"}:
        raise UnsupportedModelError(
            f"{_names(driver, owners)} is a formula of two guidance branches; this pipeline has "
            f"{len(branches)}: {', '.join(sorted(branches))}"
        )
    if is_batched:
        guidance.known_scale(names)
    else:
        _solvable_scale(guidance, names)


def owns_guidance(technique: Technique) -> bool:
    """Whether a technique replaces the guidance formula."""
    return "guidance" in technique.all_claims()


def _first_call(
    driver: "DenoiserDriver",
    run: Run,
    call: PredictionCall,
    editors: Sequence[Technique],
) -> Tensor:
    """Both branches in one batch, the conditional one alone, or the first of two calls."""
    owners = [t for t in editors if owns_guidance(t)]
    is_batched = call.has("cond") and call.has("uncond")
    is_awaited = not is_batched and _is_awaited(driver.family, call.guidance)
    renormalises = driver.family.combine == "renormalised"
    call.rescale = call.guidance.rescale if is_batched and not renormalises else 0.0
    for technique in editors:
        if is_batched or technique not in owners:
            _edit(driver, call, technique)
    _warn(driver, call, editors, is_batched, is_awaited)
    is_kept = is_awaited and (bool(owners) or call.rescale > 0)
    combined = None if is_kept else _combined(call)
    shift = call.delta if combined is None else combined - call.get("cond").float()
    cond = call.get("cond") if is_kept else None
    is_final = shift is None and cond is None
    run.kept = None if is_final else Kept(shift, call.delta, cond, call.rescale)
    if combined is not None:
        return call.spread(combined)
    return call.main() if shift is None else _shifted(call, shift)


def _warn(
    driver: "DenoiserDriver",
    call: PredictionCall,
    editors: Sequence[Technique],
    is_batched: bool,
    is_awaited: bool,
) -> None:
    # One that edits inputs too tells the denoiser its scale, and warns itself.
    owners = [t for t in editors if owns_guidance(t) and not t.overrides("edit_inputs")]
    if owners and not (is_batched or is_awaited):
        driver.report.warn(
            f"{_names(driver, owners)}: no effect where the denoiser is given one branch: "
            "classifier-free guidance is off (the guidance scale is too small, or a negative "
            "prompt is missing), or the pipeline calls once a branch and no family says so"
        )
    is_guided = is_batched or is_awaited
    if call.delta is not None and is_guided and _renormalises(driver.family, call.guidance):
        driver.report.warn(
            f"{_names(driver, editors)}: the pipeline renormalises its guidance, and the norm "
            "includes the added term"
        )


def _solved(
    driver: "DenoiserDriver",
    call: PredictionCall,
    kept: Kept,
    cond: Tensor,
    editors: Sequence[Technique],
) -> Tensor:
    """The unconditional prediction that makes the pipeline's formula give ours."""
    owners = [t for t in editors if owns_guidance(t)]
    items = [row.item for row in call.rows]
    both = PredictionCall(
        call.step,
        (*(Row("cond", item) for item in items), *call.rows),
        torch.cat([cond, call.prediction.to(cond)]),
        call.latents,
        guidance=call.guidance,
        delta=kept.delta,
        rescale=kept.rescale,
    )
    for technique in owners:
        _edit(driver, both, technique)
    combined = _combined(both)
    if combined is None:
        return call.main() if kept.shift is None else _shifted(call, kept.shift)
    scale = _solvable_scale(call.guidance, _names(driver, editors))
    given = cond if kept.shift is None else cond + kept.shift.to(cond)
    return solve_uncond(combined, given.float(), scale).to(call.prediction)


def _edit(driver: "DenoiserDriver", call: PredictionCall, technique: Technique) -> None:
    call.strength = technique.strength_at(call.step.index, call.step.total)
    call.state, call.owner = driver.state_of(technique), driver.planner.label(technique)
    call.may_own = owns_guidance(technique)
    technique.edit_prediction(call)
    if not call.may_own:
        return
    if call.combined is not None and call.strength != 1.0:
        call.combined = torch.lerp(_plain(call), call.combined, call.strength)
    place = f"{driver.name}.prediction"
    driver.report.record(call.step.index, "main", place, (call.owner,), "-", 0.0)


def _combined(call: PredictionCall) -> Tensor | None:
    """The prediction that the pipeline shall get; ``None`` if adding the terms gives it."""
    if call.combined is None and (call.rescale == 0 or call.delta is None):
        return None
    combined = _plain(call) if call.combined is None else call.combined.float()
    if call.delta is not None:
        combined = combined + call.delta.float()
    if call.rescale > 0:
        combined = rescale_deviation(combined, call.get("cond").float(), call.rescale)
    if call.guidance.rescale > 0 and bool((combined.flatten(1).std(dim=1) == 0).any()):
        raise UnsupportedModelError(
            f"the guided prediction of step {call.step.index} has no deviation, and the pipeline's "
            "guidance_rescale divides by it; call the pipeline with guidance_rescale=0, or set "
            "zero_steps=0 (CFGZeroStar)"
        )
    return combined


def _plain(call: PredictionCall) -> Tensor:
    """What the pipeline would make of the branches by itself, in fp32."""
    cond = call.get("cond").float()
    if not call.has("uncond"):
        return cond
    scale = call.guidance.known_scale("rescaling")
    uncond = call.get("uncond").float()
    if not call.has("image"):
        return classifier_free(cond, uncond, scale)
    if call.guidance.image_scale is None:
        raise UnsupportedModelError("rescaling needs the image guidance scale, which is not known")
    return image_guidance(cond, call.get("image").float(), uncond, scale, call.guidance.image_scale)


def _shifted(call: PredictionCall, shift: Tensor) -> Tensor:
    """The main rows with the same term added to every branch of an item."""
    return call.main() + call.spread(shift)


def _solvable_scale(guidance: Guidance, names: str) -> float:
    scale = guidance.known_scale(names)
    if scale < SMALLEST_SOLVED_SCALE:
        raise UnsupportedModelError(
            f"{names} needs a guidance scale of at least {SMALLEST_SOLVED_SCALE} in a pipeline "
            f"that calls its denoiser once a branch; this call has {scale:g}"
        )
    return scale


def _is_awaited(family: Family, guidance: Guidance) -> bool:
    """Whether the unconditional branch comes in a call of its own."""
    return family.separate and guidance.is_on is not False


def _acting(driver: "DenoiserDriver") -> list[Technique]:
    """Techniques that act at some step of the run."""
    total = driver.step.total
    if total is None:
        return list(driver.planner.techniques)
    return [
        t
        for t in driver.planner.techniques
        if any(t.strength_at(index, total) for index in range(total))
    ]


def _names(driver: "DenoiserDriver", techniques: Sequence[Technique]) -> str:
    return " and ".join(driver.planner.label(t) for t in techniques)


def _renormalises(family: Family, guidance: Guidance) -> bool:
    return family.combine == "renormalised" or (family.separate and guidance.rescale > 0)
