"""Re-ttention's two statistics of a dense step: the mass inside a mask, and what lay outside it."""

from torch import Tensor


def kept_statistics(
    out: Tensor, lse: Tensor, kept_out: Tensor, kept_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """Measure on a dense step what a sparse step will miss.

    Args:
        out: ``(B, H, Q, D)``, attention over all keys.
        lse: ``(B, H, Q)``, its log-sum-exp.
        kept_out: ``(B, H, Q, D)``, attention over the kept keys of the same query, key and value.
        kept_lse: ``(B, H, Q)``, its log-sum-exp; ``-inf`` for a row that keeps no key.

    Returns:
        mass ``(B, H, Q)``, the share of the softmax on the kept keys, in [0, 1], and residual
        ``(B, H, Q, D)`` in the dtype of ``out``, the contribution of all other keys:
        ``out == mass * kept_out + residual``.

    Source: Re-ttention, arXiv 2505.22918: rho and the residual, from two log-sum-exps.
    """
    mass = (kept_lse - lse).exp()
    wide = mass.dtype
    residual = out.to(wide) - mass.unsqueeze(-1) * kept_out.to(wide)
    return mass, residual.to(out.dtype)


def reuse_statistics(
    kept_out: Tensor, mass: Tensor, residual: Tensor, shift: float = 0.0, *, clamp: bool = False
) -> Tensor:
    """Repair a sparse step with the statistics of a dense one: ``(mass + shift) * out + residual``.

    Args:
        kept_out: ``(B, H, Q, D)``, attention over the kept keys; rows without keys are 0.
        mass: ``(B, H, Q)`` from `kept_statistics`.
        residual: ``(B, H, Q, D)`` from `kept_statistics`.
        shift: Added to the mass: 0.04 for each sparse step since in the reference.
        clamp: Keep the sum at most 1; the reference does not.

    Source: Re-ttention, arXiv 2505.22918; the reference adds ``lambda`` after every sparse step.
    """
    weight = mass + shift
    if clamp:
        weight = weight.clamp(max=1.0)
    out = weight.unsqueeze(-1) * kept_out.to(mass.dtype) + residual.to(mass.dtype)
    return out.to(kept_out.dtype)
