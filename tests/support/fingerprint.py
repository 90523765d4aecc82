"""What a pipeline looks like from outside: two equal fingerprints mean an exact restore."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

Fingerprint = dict[str, Any]

HOOK_DICTS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_non_full_backward_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def fingerprint(subject: DiffusionPipeline | nn.Module) -> Fingerprint:
    """Describe a pipeline or a model by everything that attnctl could leave behind.

    Values are plain numbers, strings and tuples under readable paths; compare with ``differences``.
    Take both fingerprints while ``subject`` is alive: identities of dead objects are used again.
    """
    marks: Fingerprint = {}
    if isinstance(subject, nn.Module):
        marks.update(model_marks("model", subject))
    else:
        marks.update(pipeline_marks(subject))
    marks.update(process_marks())
    return marks


def pipeline_marks(pipe: DiffusionPipeline) -> Fingerprint:
    """Describe the pipeline object, its class, its scheduler and each of its models."""
    marks: Fingerprint = {
        "pipe attributes": tuple(sorted(vars(pipe))),
        "pipe class": id(type(pipe)),
        "pipe class attributes": class_marks(type(pipe)),
        "pipe config": tuple(sorted(pipe.config)),
    }
    for name, part in sorted(pipe.components.items()):
        marks[f"{name} identity"] = id(part)
        if isinstance(part, nn.Module):
            marks.update(model_marks(name, part))
        elif name.startswith("scheduler") and part is not None:
            marks[f"{name} attributes"] = tuple(sorted(vars(part)))
            marks[f"{name} class attributes"] = class_marks(type(part))
    return marks


def model_marks(name: str, model: nn.Module) -> Fingerprint:
    """Describe a model: its state dict and every module in it."""
    state = model.state_dict()
    marks: Fingerprint = {
        f"{name} state dict": tuple((key, tuple(value.shape)) for key, value in state.items()),
        f"{name} training": model.training,
    }
    for path, module in model.named_modules():
        here = f"{name}.{path}" if path else name
        marks.update({f"{here} {mark}": value for mark, value in module_marks(module).items()})
        marks[f"class {type(module).__qualname__} attributes"] = class_marks(type(module))
    return marks


def module_marks(module: nn.Module) -> Fingerprint:
    """Describe one module without its children."""
    own = vars(module)
    marks: Fingerprint = {
        "class": f"{type(module).__qualname__} {id(type(module))}",
        "attributes": tuple(sorted(own)),
        "children": tuple((name, id(child)) for name, child in module._modules.items()),
        "parameters": tuple(
            (name, id(value), value.requires_grad, value.grad is None)
            for name, value in module._parameters.items()
            if value is not None
        ),
        "buffers": tuple(sorted(module._buffers)),
        "hooks": tuple((name, len(own[name])) for name in HOOK_DICTS if own.get(name)),
    }
    for replaced in ("forward", "_compiled_call_impl"):
        if own.get(replaced) is not None:
            marks[replaced] = id(own[replaced])
    if hasattr(module, "processor"):
        marks["processor"] = f"{type(module.processor).__qualname__} {id(module.processor)}"
        marks["processor slot"] = "module" if "processor" in module._modules else "attribute"
        marks["processor attributes"] = tuple(sorted(getattr(module.processor, "__dict__", ())))
    return marks


def class_marks(cls: type) -> tuple[tuple[str, int], ...]:
    """Names and identities of what a class itself defines."""
    return tuple(sorted((name, id(value)) for name, value in vars(cls).items() if lasting(name)))


def lasting(name: str) -> bool:
    """Is this class attribute no cache that Python fills by itself?"""
    return name not in ("__abstractmethods__", "_abc_impl", "__annotations__", "__annotate__")


def process_marks() -> Fingerprint:
    """Describe the global state that attnctl must leave alone."""
    return {
        "process grad mode": torch.is_grad_enabled(),
        "process inference mode": torch.is_inference_mode_enabled(),
        "process default dtype": str(torch.get_default_dtype()),
        "process default device": str(torch.get_default_device()),
        "process deterministic": torch.are_deterministic_algorithms_enabled(),
        "process random state": hash(torch.get_rng_state().numpy().tobytes()),
        "process function modes": torch._C._len_torch_function_stack(),
        "process attention backend": attention_backend(),
        "process global forward hooks": tuple(
            len(getattr(torch.nn.modules.module, name))
            for name in ("_global_forward_pre_hooks", "_global_forward_hooks")
        ),
    }


def attention_backend() -> str:
    """Name of the backend that diffusers uses when a processor names none."""
    from diffusers.models import attention_dispatch

    return str(attention_dispatch._AttentionBackendRegistry._active_backend)


def differences(before: Fingerprint, after: Fingerprint, ignore: Iterable[str] = ()) -> list[str]:
    """Say in words where two fingerprints differ.

    Args:
        before: The fingerprint to come back to.
        after: The one to check.
        ignore: Endings of paths that may differ, for instance ``("random state",)``.

    Returns:
        One line a difference; an empty list when the restore is exact.
    """
    endings = tuple(ignore)
    lines = []
    for path in sorted(before.keys() | after.keys()):
        if endings and path.endswith(endings):
            continue
        if path not in after:
            lines.append(f"{path}: gone, was {shorten(before[path])}")
        elif path not in before:
            lines.append(f"{path}: new, {shorten(after[path])}")
        elif before[path] != after[path]:
            lines.append(f"{path}: {describe_change(before[path], after[path])}")
    return lines


def describe_change(old: Any, new: Any) -> str:
    """Name what came and went in a tuple; show other values whole."""
    if isinstance(old, tuple) and isinstance(new, tuple):
        gone = [item for item in old if item not in new]
        came = [item for item in new if item not in old]
        if gone or came:
            return f"lost {shorten(gone)}, gained {shorten(came)}"
        return "same entries in another order"
    return f"was {shorten(old)}, is {shorten(new)}"


def shorten(value: Any, limit: int = 200) -> str:
    """Show a value in at most ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
