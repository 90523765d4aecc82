"""Run the chain of techniques at one site: edits, kernel or explicit map, reads."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnctl.calls import AttentionCall, Pass, Read, Step
from attnctl.engine.cache import SiteCache
from attnctl.engine.site_plans import Link, SitePlan
from attnctl.errors import KernelError
from attnctl.kernels import attention, attention_scores
from attnctl.kernels.masks import repeat_heads

if TYPE_CHECKING:
    from attnctl.engine.chain import InterceptedCall, ProcessorCall
    from attnctl.engine.denoiser import DenoiserDriver

EXPLICIT_LIMIT_BYTES = 2 * 2**30


class StopForward(Exception):  # noqa: N818 - no error, a way out
    """The last attention that a loss reads has been seen; the rest of the forward is not needed."""


class SiteExecution:
    """One call of one controlled site (see :class:`attnctl.engine.chain.SiteControl`)."""

    def __init__(self, driver: "DenoiserDriver", plan: SitePlan, given: "ProcessorCall") -> None:
        self._driver, self._plan, self._given = driver, plan, given
        self._calls = 0

    def is_main(self, call: int) -> bool:
        """Whether the n-th attention call of the module is the site's own."""
        return self._driver.family.main_call(self._given.attn, call)

    def leaves_out(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the processor makes no attention call with these arguments."""
        return self._driver.family.leaves_out(arguments)

    def attend(self, intercepted: "InterceptedCall") -> Tensor:
        """Run the chain in place of the attention call."""
        started = perf_counter()
        driver, plan = self._driver, self._plan
        pass_ = self._pass_of_call()
        call = _make_call(plan, driver.step, pass_, intercepted, self._given, driver.cache)
        given = (call.query, call.key, call.value, call.mask)
        _read(driver, plan, call, raw=True)
        for link in plan.links:
            if "edit_qkv" in link.edits:
                _lend(driver, call, link).edit_qkv(call)
        edited = (call.query, call.key, call.value, call.mask)
        is_edited = any(a is not b for a, b in zip(given, edited, strict=True))
        out, kernel = _compute(driver, plan, call, intercepted, is_edited)
        _read(driver, plan, call, raw=False)
        for link in plan.links:
            if "edit_output" in link.edits:
                out = _lend(driver, call, link).edit_output(call, out)
        driver.report.record(
            driver.step.index,
            driver.pass_.kind,
            f"{driver.name}.{plan.site.path}",
            tuple(link.label for link in plan.links),
            kernel,
            perf_counter() - started,
        )
        if self._calls in (0, len(driver.pass_.rows)):
            driver.on_site_done(plan.site.path)
        return out

    def _pass_of_call(self) -> Pass:
        """The pass, with the rows that one attention call holds."""
        pass_ = self._driver.pass_
        if not self._driver.family.calls_a_row:
            return pass_
        self._calls += 1
        return replace(pass_, rows=pass_.rows[self._calls - 1 : self._calls])


def _make_call(
    plan: SitePlan,
    step: Step,
    pass_: Pass,
    intercepted: "InterceptedCall",
    processor: "ProcessorCall",
    cache: SiteCache | None,
) -> AttentionCall:
    given = intercepted.kwargs
    query = given["query"]
    return AttentionCall(
        site=plan.site,
        layout=plan.layout,
        step=step,
        pass_=pass_,
        query=query,
        key=given["key"],
        value=given["value"],
        mask=intercepted.mask,
        scale=given.get("scale") or query.shape[-1] ** -0.5,
        hidden=processor.hidden,
        processor=processor,
        cache=cache,
        wants_lse=any(r.what == "columns" and not r.raw for k in plan.links for r in k.reads),
    )


def _lend(driver: "DenoiserDriver", call: AttentionCall, link: Link) -> Any:
    """Give a call the strength, heads, state and label of one technique; return the technique."""
    call.strength, call.heads, call.owner = link.strength, link.heads, link.label
    call.state = driver.state_of(link.technique)
    call.keys_of_other = driver.keys_of.get(link.label)
    return link.technique


def _compute(
    driver: "DenoiserDriver",
    plan: SitePlan,
    call: AttentionCall,
    intercepted: "InterceptedCall",
    is_edited: bool,
) -> tuple[Tensor, str]:
    """Output of the site and the name of what computed it; untouched calls run as they were."""
    if plan.owner is not None:
        out = _lend(driver, call, plan.owner).attend(call)
        return out, call.kernel or plan.owner.technique.name
    if plan.is_explicit:
        return _explicit(driver, plan, call), "explicit"
    if driver.kernel != "auto":
        out, _ = attention(
            call.query, call.key, call.value, call.mask, call.scale, kernel=driver.kernel
        )
        return out, driver.kernel
    if not is_edited:
        return intercepted.run(), "sdpa"
    edits = {"query": call.query, "key": call.key, "value": call.value, "attn_mask": call.mask}
    return intercepted.run(**edits, is_causal=False), "sdpa"


def _explicit(driver: "DenoiserDriver", plan: SitePlan, call: AttentionCall) -> Tensor:
    """Softmax attention with the whole map, fp32 or wider, for techniques that edit or read it."""
    batch, heads, queries, _ = call.query.shape
    keys = call.key.shape[2]
    size = 4 * batch * heads * queries * keys
    if size > EXPLICIT_LIMIT_BYTES:
        raise KernelError(
            f"the whole attention map of {plan.site.path} would take {size / 2**30:.1f} GiB "
            f"({batch} x {heads} x {queries} x {keys} in fp32), more than "
            f"{EXPLICIT_LIMIT_BYTES / 2**30:.0f} GiB; select smaller sites with where="
        )
    scores = attention_scores(call.query, call.key, call.scale)
    bias = call.additive_mask()
    if bias is not None:
        # Never minus infinity: a query without any allowed key would give NaN.
        scores = scores + bias.to(scores.dtype).clamp_min(torch.finfo(torch.float32).min / 2)
    for link in plan.links:
        if "edit_scores" in link.edits:
            scores = _lend(driver, call, link).edit_scores(call, scores)
    probs = torch.softmax(scores, dim=-1)
    for link in plan.links:
        if "edit_probs" in link.edits:
            probs = _lend(driver, call, link).edit_probs(call, probs)
    for link in plan.links:
        for what in link.reads:
            if what.what == "probs":
                at = call.pick(branch=what.branch, kind="main")
                _lend(driver, call, link).read(call, what, probs[at])
    value = repeat_heads(call.value, heads).to(probs.dtype)
    return (probs @ value).to(call.value.dtype)


def _read(driver: "DenoiserDriver", plan: SitePlan, call: AttentionCall, *, raw: bool) -> None:
    """Deliver columns, masses, or query and key to the techniques that asked for them."""
    for link in plan.links:
        for what in link.reads:
            if what.what == "probs" or what.raw != raw:
                continue
            at = call.pick(branch=what.branch, kind="main")
            # Taking all of them would be a copy, and another one in the backward.
            at = None if len(at) == len(call.query) else at
            if at is None or len(at):
                _lend(driver, call, link).read(call, what, _value_of(call, what, at))


def _value_of(call: AttentionCall, what: Read, at: Tensor | None) -> Any:
    if what.what == "qk":
        return (call.query, call.key) if at is None else (call.query[at], call.key[at])
    if what.what == "masses" and what.groups is not None:
        return call.masses(what.groups, at)
    layout = call.layout
    if what.tokens is not None:
        return call.columns(what.tokens, at)
    if layout is None or layout.text is None:
        raise KernelError(
            f"the text tokens of {call.site.path} are unknown; give their positions with tokens="
        )
    return call.columns(layout.text, at, layout.image)
