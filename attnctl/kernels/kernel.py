"""The capability record of an attention kernel, the list of kernels, and the one chooser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from attnctl.errors import KernelError, nearest

if TYPE_CHECKING:
    from attnctl.kernels.layout import BlockLayout

Backward = Literal["none", "out", "out+lse"]
MaskKind = Literal["bool", "bias", "block"]
Run = Callable[[Tensor, Tensor, Tensor, Any, float | None], tuple[Tensor, Tensor | None]]

BACKWARD_ORDER: tuple[Backward, ...] = ("none", "out", "out+lse")
ANY_DEVICE = frozenset({"cpu", "cuda", "mps", "xpu"})
_BLOCKS_ONLY: frozenset[MaskKind] = frozenset({"block"})
HALF_DTYPES = frozenset({torch.float16, torch.bfloat16})
FLOAT_DTYPES = HALF_DTYPES | {torch.float32, torch.float64}


def any_width(head_width: int, value_width: int) -> bool:
    """Take every width, for `Kernel.head_width`."""
    return head_width > 0 and value_width > 0


def _never_missing() -> str | None:
    return None


def _any_blocks(_q_block: int, _k_block: int) -> bool:
    return True


def _always(_request: Request) -> bool:
    return True


@dataclass(frozen=True)
class Kernel:
    """One way of computing attention, and what it can do. It knows no technique.

    Attributes:
        name: What a user writes for ``kernel=``.
        summary: One line for ``attnctl list kernels``.
        run: ``(query, key, value, mask, scale) -> (out, lse)``. Query ``(B, H, Q, D)``, key
            ``(B, H | fewer, K, D)``, value ``(B, H | fewer, K, Dv)``; out ``(B, H, Q, Dv)`` in the
            dtype of the query; mask a tensor, a `BlockLayout` or None; lse the natural
            log-sum-exp of the scaled and masked scores, ``(B, H, Q)``, float32 or wider, or None.
            A row without any allowed key gives out 0 and lse ``-inf``, never NaN.
        devices: Device types it runs on.
        dtypes: Dtypes of query, key and value.
        head_width: ``(D, Dv) -> bool``: does it take these widths?
        mask: The mask kinds it takes; no mask is always allowed, except where ``"block"`` is the
            only kind.
        lse: Does it return the log-sum-exp?
        gqa: May key and value have fewer heads than the query?
        exact: Is it attention under the given mask, up to rounding?
        backward: What gradients flow through: nothing, the output, or output and log-sum-exp.
        why_missing: None if it can run on this machine, else the reason in words.
        blocks: ``(q_block, k_block) -> bool``: does it take layouts with these blocks?
        suits: Is it worth taking for this request, if it can serve it? Only ``"auto"`` asks.
    """

    name: str
    summary: str
    run: Run
    devices: frozenset[str]
    dtypes: frozenset[torch.dtype]
    head_width: Callable[[int, int], bool]
    mask: frozenset[MaskKind]
    lse: bool
    gqa: bool
    exact: bool
    backward: Backward
    why_missing: Callable[[], str | None] = _never_missing
    blocks: Callable[[int, int], bool] = _any_blocks
    suits: Callable[[Request], bool] = _always


@dataclass(frozen=True)
class Request:
    """What a caller needs from a kernel; see `choose` for the fields."""

    device: str
    dtype: torch.dtype
    head_width: int
    value_width: int
    mask: MaskKind | None
    lse: bool
    backward: Backward
    layout: BlockLayout | None = None

    def why_not(self, kernel: Kernel) -> str | None:
        """Say why ``kernel`` cannot serve this request; None if it can."""
        reason = kernel.why_missing()
        if reason is not None:
            return reason
        if self.device not in kernel.devices:
            return f"does not run on {self.device!r} (runs on {', '.join(sorted(kernel.devices))})"
        if self.dtype not in kernel.dtypes:
            return f"does not take {self.dtype}"
        if not kernel.head_width(self.head_width, self.value_width):
            return f"does not take head widths {self.head_width} and {self.value_width}"
        if kernel.mask == _BLOCKS_ONLY and self.mask != "block":
            return "takes block layouts only"
        if self.mask is not None and self.mask not in kernel.mask:
            return f"does not take a {self.mask!r} mask"
        layout = self.layout
        if layout is not None and not kernel.blocks(layout.q_block, layout.k_block):
            return f"does not take blocks of {layout.q_block} x {layout.k_block}"
        if self.lse and not kernel.lse:
            return "does not return the log-sum-exp"
        if BACKWARD_ORDER.index(self.backward) > BACKWARD_ORDER.index(kernel.backward):
            return f"has gradients for {kernel.backward!r}, not for {self.backward!r}"
        return None


_kernels: dict[str, Kernel] = {}


def register_kernel(kernel: Kernel) -> Kernel:
    """Add ``kernel`` to the list; kernels registered first are preferred by ``"auto"``.

    Raises:
        KernelError: A kernel of that name is registered already.
    """
    if kernel.name in _kernels or kernel.name == "auto":
        raise KernelError(f"a kernel named {kernel.name!r} exists already; choose another name")
    _kernels[kernel.name] = kernel
    return kernel


def list_kernels() -> list[Kernel]:
    """Return every known kernel in order of preference, those missing on this machine too."""
    return list(_kernels.values())


def choose(
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    head_width: int,
    value_width: int | None = None,
    mask: MaskKind | None = None,
    lse: bool = False,
    backward: Backward = "none",
    layout: BlockLayout | None = None,
    forced: str = "auto",
) -> Kernel:
    """Return the first kernel that can serve a request, or exactly the one that is forced.

    Args:
        device: Device of the tensors; only its type counts.
        dtype: Dtype of query, key and value.
        head_width: Width D of query and key.
        value_width: Width of the value; None means D.
        mask: Kind of the mask: ``"bool"``, ``"bias"``, ``"block"`` or None.
        lse: Whether the log-sum-exp is needed.
        backward: ``"none"``, ``"out"`` (gradients of the output) or ``"out+lse"``.
        layout: The layout, if the mask is ``"block"``.
        forced: A kernel's name, or ``"auto"``.

    Raises:
        KernelError: No kernel can, the forced one cannot, or its name is unknown. The message
            gives the reason and lists the kernels that can.
    """
    device_type = device.type if isinstance(device, torch.device) else device.split(":")[0]
    width = head_width if value_width is None else value_width
    request = Request(device_type, dtype, head_width, width, mask, lse, backward, layout)
    able = [kernel for kernel in _kernels.values() if request.why_not(kernel) is None]
    if forced == "auto":
        for kernel in able:
            if kernel.suits(request):
                return kernel
        reasons = "; ".join(f"{k.name}: {request.why_not(k)}" for k in _kernels.values())
        raise KernelError(f"no attention kernel can serve this request ({reasons})")
    if forced not in _kernels:
        raise KernelError(f"no attention kernel {forced!r}; {nearest(forced, [*_kernels, 'auto'])}")
    reason = request.why_not(_kernels[forced])
    if reason is not None:
        possible = ", ".join(repr(kernel.name) for kernel in able) or "none"
        raise KernelError(f"kernel {forced!r} {reason}; possible here: {possible}")
    return _kernels[forced]
