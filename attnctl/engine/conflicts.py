"""What two techniques cannot both have at the same sites and steps."""

from collections.abc import Iterable

from attnctl.errors import ConflictError
from attnctl.sites import Site
from attnctl.technique import Technique

SITE_CLAIMS = frozenset({"kernel", "kv", "query"})
STEP_CLAIMS = frozenset({"guidance", "overwrite", "optimiser"})

_CLAIM_WORDS = {
    "kernel": "the attention kernel",
    "kv": "keys and values",
    "query": "the queries",
    "guidance": "the guidance formula",
    "overwrite": "to write the latents after the step",
    "optimiser": "an optimiser on the latents",
}


def check_pair(
    a: Technique,
    b: Technique,
    at_a: Iterable[Site],
    at_b: Iterable[Site],
    step: int | None,
) -> None:
    """Refuse two techniques that claim the same thing.

    Args:
        a: One technique, acting at the sites ``at_a``.
        b: Another, acting at ``at_b``.
        at_a: Sites of ``a``.
        at_b: Sites of ``b``.
        step: First step at which both act; ``None`` if they do so in every run.

    Raises:
        ConflictError: naming both, the site, the step and a remedy.
    """
    when = "" if step is None else f", first at step {step}"
    for claim in sorted(a.all_claims() & b.all_claims() & STEP_CLAIMS):
        raise ConflictError(
            f"{a.name!r} and {b.name!r} both need {_CLAIM_WORDS[claim]} for themselves{when}; "
            "give them different steps, or drop one"
        )
    if "optimiser" in a.claims | b.claims and a.overrides("loss") and b.overrides("loss"):
        raise ConflictError(
            f"{a.name!r} and {b.name!r} both move the latents, and one has an optimiser of its "
            f"own{when}; give them different steps, or drop one"
        )
    shared = set(at_a) & set(at_b)
    reason = _site_conflict(a, b) or _site_conflict(b, a)
    if shared and reason:
        first = min(shared, key=lambda site: site.index)
        raise ConflictError(
            f"{reason} at {first.denoiser}.{first.path}{when}; "
            "move one to other layers (where=) or other steps (steps=)"
        )


def _site_conflict(a: Technique, b: Technique) -> str | None:
    for claim in sorted(a.all_claims() & b.all_claims() & SITE_CLAIMS):
        return f"{a.name!r} and {b.name!r} both need {_CLAIM_WORDS[claim]} for themselves"
    if "kernel" not in a.all_claims():
        return None
    wants_map = b.overrides("edit_scores") or b.overrides("edit_probs")
    wants_map = wants_map or any(r.what == "probs" for r in b.needs().reads)
    if wants_map:
        return f"{b.name!r} needs the whole attention map where {a.name!r} runs its own kernel"
    if "kv" in b.claims:
        return f"{b.name!r} replaces keys and values where {a.name!r} runs its own kernel"
    reads = [r for r in b.needs().reads if not r.raw]
    in_gradient = [r for r in reads if r.grad]
    in_main = [r for r in reads if not r.grad]
    hidden = bool(in_gradient) and not a.has_dense_gradients
    hidden |= any(r.what == "masses" or not a.gives_lse for r in in_main)
    if hidden:
        return f"{b.name!r} reads attention that the kernel of {a.name!r} does not show"
    return None
