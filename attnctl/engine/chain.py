"""The controlled processor: a transparent shell that sees one attention call and runs the chain.

A tap stands in an attention module's ``processor`` slot and runs the original processor inside a
torch function mode, which intercepts its scaled-dot-product attention after projection, norms and
rotary embedding. This is the only file that touches torch function modes.
"""

import copy
import inspect
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models import attention_processor as stock
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnctl.errors import UnsupportedModelError

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float | None], Tensor]


class Gate(Protocol):
    """Decides, for each call of a tapped site, whether the chain runs."""

    active: dict[str, Any]

    def control(self, path: str, given: "ProcessorCall") -> "SiteControl":
        """The handler of one call of an active site."""
        ...


class SiteControl(Protocol):
    """Handles the attention calls of one call of a processor."""

    def is_main(self, call: int) -> bool:
        """Whether the n-th attention call is the site's own."""
        ...

    def attend(self, intercepted: "InterceptedCall") -> Tensor:
        """Run the chain in place of the attention call."""
        ...

    def leaves_out(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the processor makes no attention call with these arguments."""
        ...


class ProcessorCall:
    """One call of the processor of a site."""

    __slots__ = ("_args", "_kwargs", "attn", "processor")

    def __init__(self, processor: Any, attn: nn.Module, args: Any, kwargs: Any) -> None:
        self.processor, self.attn = processor, attn
        self._args, self._kwargs = args, kwargs

    @property
    def hidden(self) -> Tensor | None:
        """Input of the attention module."""
        return self._args[0] if self._args else self._kwargs.get("hidden_states")

    def run(self, processor: Any) -> Any:
        """Make the call, with this processor."""
        return processor(self.attn, *self._args, **self._kwargs)

    def arguments(self) -> dict[str, Any]:
        """What the processor was given beside the module, by name."""
        signature = _call_signature(type(self.processor))
        names = list(signature.parameters)[2:]  # without the processor and the module
        return dict(zip(names, self._args, strict=False)) | self._kwargs


class InterceptedCall:
    """Arguments of one ``scaled_dot_product_attention``, and a way to run it as it was."""

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
        self.kwargs = dict(zip(names, args, strict=False)) | kwargs

    def run(self, **changes: Any) -> Tensor:
        """The attention as the processor asked for it, with ``changes``."""
        return F.scaled_dot_product_attention(**(self.kwargs | changes))

    @property
    def mask(self) -> Tensor | None:
        """The mask, with a causal flag made explicit."""
        if not self.kwargs.get("is_causal"):
            return self.kwargs.get("attn_mask")
        query, key = self.kwargs["query"], self.kwargs["key"]
        shape = (query.shape[-2], key.shape[-2])
        return torch.ones(shape, dtype=torch.bool, device=query.device).tril()


class _Interceptor(TorchFunctionMode):
    def __init__(self, control: SiteControl, scale: float | None) -> None:
        super().__init__()
        self._control = control
        self._scale = scale
        self.calls = 0
        self.was_main_seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        call = self.calls
        self.calls += 1
        if not self._control.is_main(call):
            return func(*args, **kwargs)
        self.was_main_seen = True
        intercepted = InterceptedCall(args, kwargs)
        if intercepted.kwargs.get("scale") is None and self._scale is not None:
            intercepted.kwargs["scale"] = self._scale
        return self._control.attend(intercepted)


class _Tap:
    """Base of the generated shells; everything but the call goes to the original processor."""

    __slots__ = ("_attnctl_gate", "_attnctl_inner", "_attnctl_path")

    def __getattribute__(self, name: str) -> Any:
        if name in _OWN:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_attnctl_inner"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "_attnctl_inner"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "_attnctl_inner"), name)

    def __repr__(self) -> str:
        return repr(object.__getattribute__(self, "_attnctl_inner"))

    def __copy__(self) -> Any:
        return copy.copy(inner_of(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(inner_of(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return inner_of(self).__reduce_ex__(protocol)


_OWN = frozenset({"__call__", "__copy__", "__deepcopy__", "__reduce_ex__", "__repr__"})
_shells: dict[type, type[_Tap]] = {}


def tap(gate: Gate, path: str, inner: Any) -> Any:
    """Make the shell that stands in the processor slot of the site ``path``."""
    shell = _shells.get(type(inner))
    if shell is None:
        shell = _shells.setdefault(type(inner), _make_shell(type(inner)))
    made = object.__new__(shell)
    object.__setattr__(made, "_attnctl_gate", gate)
    object.__setattr__(made, "_attnctl_path", path)
    object.__setattr__(made, "_attnctl_inner", inner)
    return made


def is_tap(processor: Any) -> bool:
    """Whether a processor is one of our shells."""
    return issubclass(type(processor), _Tap)


def inner_of(processor: Any) -> Any:
    """The original processor behind a shell."""
    return object.__getattribute__(processor, "_attnctl_inner")


def _make_shell(original: type) -> type[_Tap]:
    """Generate the shell class of one processor type: same signature, never compiled."""

    @torch._disable_dynamo  # pyright: ignore[reportPrivateUsage]
    def call(self: Any, attn: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = object.__getattribute__
        gate, path, inner = (
            own(self, "_attnctl_gate"),
            own(self, "_attnctl_path"),
            own(self, "_attnctl_inner"),
        )
        if path not in gate.active:
            return inner(attn, *args, **kwargs)
        given = ProcessorCall(inner, attn, args, kwargs)
        return run_controlled(gate.control(path, given), given)

    call.__signature__ = _call_signature(original)
    members = {"__slots__": (), "__call__": call, "__doc__": original.__doc__}
    return type(original.__name__, (_Tap,), members)


def _call_signature(original: type) -> inspect.Signature:
    call = original.__call__
    if issubclass(original, nn.Module) and call is nn.Module.__call__:
        call = original.forward
    return inspect.signature(call)


def run_controlled(control: SiteControl, given: ProcessorCall) -> Any:
    """Run a processor; its attention calls go to ``control``.

    Raises:
        UnsupportedModelError: it never reaches ``scaled_dot_product_attention``.
    """
    inner, attn = given.processor, given.attn
    processor = sdpa_twin(inner)
    scale = None if processor is inner else getattr(attn, "scale", None)  # twins forget scale_qk
    interceptor = _Interceptor(control, scale)
    backend = getattr(processor, "_attention_backend", None)
    try:
        with native_dispatch(processor), interceptor:
            result = given.run(processor)
    except ValueError as error:
        if interceptor.calls or backend is None:
            raise
        raise UnsupportedModelError(_without_sdpa(inner)) from error
    if not interceptor.was_main_seen and not control.leaves_out(given.arguments()):
        raise UnsupportedModelError(_without_sdpa(inner))
    return result


def _without_sdpa(processor: Any) -> str:
    return (
        f"{type(processor).__name__} never calls scaled_dot_product_attention, so no technique can "
        "act there; set a processor that does (such as AttnProcessor2_0) before attaching, or "
        "select other sites with where="
    )


_TWINS = {
    "AttnProcessor": "AttnProcessor2_0",
    "SlicedAttnProcessor": "AttnProcessor2_0",
    "XFormersAttnProcessor": "AttnProcessor2_0",
    "XLAFlashAttnProcessor2_0": "AttnProcessor2_0",
    "AttnProcessorNPU": "AttnProcessor2_0",
    "AttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "SlicedAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersAttnAddedKVProcessor": "AttnAddedKVProcessor2_0",
    "XFormersJointAttnProcessor": "JointAttnProcessor2_0",
    "CustomDiffusionAttnProcessor": "CustomDiffusionAttnProcessor2_0",
    "CustomDiffusionXFormersAttnProcessor": "CustomDiffusionAttnProcessor2_0",
    "IPAdapterAttnProcessor": "IPAdapterAttnProcessor2_0",
    "IPAdapterXFormersAttnProcessor": "IPAdapterAttnProcessor2_0",
}


def sdpa_twin(processor: Any) -> Any:
    """A processor that computes the same through SDPA; the processor itself if it already does.

    Twins with weights share them: they are the same attributes under another class.
    """
    name = _TWINS.get(type(processor).__name__)
    if name is None:
        return processor
    twin = object.__new__(getattr(stock, name))
    twin.__dict__.update(processor.__dict__)
    return twin


@contextmanager
def native_dispatch(processor: Any) -> Generator[None]:
    """Let diffusers' dispatcher reach SDPA inside this block, whatever backend is chosen."""
    dispatch = sys.modules.get("diffusers.models.attention_dispatch")
    if dispatch is None:
        yield
        return
    registry, native = dispatch._AttentionBackendRegistry, dispatch.AttentionBackendName.NATIVE
    active = registry._active_backend
    own = getattr(processor, "_attention_backend", None)
    kept = dict(processor.__dict__)
    if active == native and own in (None, native):
        yield
        return
    try:
        registry._active_backend = native
        if own is not None:
            processor._attention_backend = None
        yield
    finally:
        registry._active_backend = active
        if own is not None:
            del processor._attention_backend
            if "_attention_backend" in kept:
                processor._attention_backend = own
