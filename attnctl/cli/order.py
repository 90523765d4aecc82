"""What ``attnctl generate`` was asked for, checked before anything heavy is loaded."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnctl.cli.technique_text import read_technique
from attnctl.errors import RecipeError, SettingError, nearest
from attnctl.recipes import Recipe

DTYPES = {"auto": None, "fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True, slots=True)
class Machine:
    """On what, and how, the pictures are made; ``None`` leaves the choice to attnctl."""

    dtype: str | None = None
    device: str | None = None
    offload: str = "none"
    batch_size: int = 1
    kernel: str = "auto"


@dataclass(frozen=True, slots=True)
class Order:
    """One run of ``attnctl generate``.

    Attributes:
        recipe: What to make; its seed is set.
        machine: On what.
        words: Words whose heat maps are shown.
        out: Folder for the files.
        grid: Whether to put all pictures on a sheet.
        compare: Whether to make each picture without techniques too.
        source: The picture that is made again.
        batch: The batch in which the source was made, if it was not alone.
        has_random_seed: Whether nobody chose the seed.
    """

    recipe: Recipe
    machine: Machine
    words: tuple[str, ...]
    out: Path
    grid: bool = False
    compare: bool = False
    source: Path | None = None
    batch: dict[str, Any] | None = None
    has_random_seed: bool = False
    remarks: list[str] = field(default_factory=list[str])


def new_order(
    fields: dict[str, Any],
    techniques: list[str],
    recipe_file: Path | None,
    machine: Machine,
    **rest: Any,
) -> Order:
    """Read a recipe from a file and from options, which win.

    Raises:
        RecipeError: listing everything that is wrong with it.
    """
    values = Recipe.from_file(recipe_file).to_dict() if recipe_file else {}
    values.update({name: value for name, value in fields.items() if value is not None})
    if "prompt" not in values:
        raise RecipeError("no prompt; write one in quotes, or give --recipe FILE or --from IMAGE")
    if techniques:
        values["techniques"] = [read_technique(text) for text in techniques]
    is_random = values.get("seed") is None
    if is_random:
        values["seed"] = secrets.randbelow(2**32)
    recipe = Recipe.from_dict(values, name="")
    if rest.get("compare") and not recipe.techniques:
        raise RecipeError("--compare needs a technique to compare with; add -t NAME")
    check_machine(machine)
    order = Order(recipe, machine, has_random_seed=is_random, **rest)
    _check_words(order)
    return order


def order_again(source: Path, given: dict[str, Any], machine: Machine, **rest: Any) -> Order:
    """Order the same picture again.

    Raises:
        RecipeError: the picture carries no recipe, or an option would change the picture.
    """
    from attnctl.imaging import read_record, versions

    extra = [name for name, value in given.items() if value not in (None, False, [], ())]
    extra = [name for name in extra if name != "--model"]
    if extra:
        raise RecipeError(
            f"--from makes the picture as it was; leave out {', '.join(extra)}, or write the"
            " whole command without --from"
        )
    record = read_record(source)
    for command in ("edit", "compose"):
        if command in record:
            raise RecipeError(
                f"{str(source)!r} was made by `attnctl {command}` from other pictures; "
                f"{command} those again"
            )
    values = dict(record["recipe"])
    if given.get("--model"):
        values["model"] = given["--model"]
    recipe = Recipe.from_dict(values, name=f"recipe in {str(source)!r}")
    if recipe.seed is None or not isinstance(recipe.prompt, str) or recipe.count != 1:
        raise RecipeError(f"the recipe in {str(source)!r} is not that of one picture")
    run: dict[str, Any] = record.get("run", {})
    machine = Machine(
        machine.dtype or run.get("dtype"),
        machine.device,
        machine.offload,
        1,
        machine.kernel if machine.kernel != "auto" else run.get("kernel", "auto"),
    )
    check_machine(machine)
    made_with: dict[str, str] = record.get("versions", {})
    remarks = [
        f"made with {package} {made_with[package]}, this is {version}: pixels may differ"
        for package, version in versions().items()
        if made_with.get(package, version) != version
    ]
    order = Order(
        recipe, machine, source=source, batch=run.get("batch"), remarks=remarks, **rest
    )  # fmt: skip
    _check_words(order)
    return order


def read_words(text: str | None) -> tuple[str, ...]:
    """Read ``--heatmaps "cat, red frog"``."""
    if text is None:
        return ()
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise RecipeError('--heatmaps names no word; write --heatmaps "cat,frog"')
    return words


def check_machine(machine: Machine) -> None:
    """Refuse what this machine cannot do.

    Raises:
        SettingError: an unknown dtype, offload or kernel, or a device that is not there.
    """
    if machine.dtype not in (None, *DTYPES, *DTYPES.values()):
        raise SettingError(f"--dtype {machine.dtype!r}; {nearest(machine.dtype or '', DTYPES)}")
    if machine.offload not in OFFLOADS:
        raise SettingError(f"--offload {machine.offload!r}; {nearest(machine.offload, OFFLOADS)}")
    if machine.device is not None:
        check_device(machine.device)
    if machine.offload != "none" and not _has_accelerator():
        raise SettingError(
            f"--offload {machine.offload} saves GPU memory, and there is no GPU; leave it out"
        )
    if machine.kernel != "auto":
        from attnctl.kernels import list_kernels

        names = ["auto", *(kernel.name for kernel in list_kernels())]
        if machine.kernel not in names:
            raise SettingError(f"--kernel {machine.kernel!r}; {nearest(machine.kernel, names)}")


def _has_accelerator() -> bool:
    import torch

    return torch.accelerator.is_available()


def check_device(device: str) -> None:
    """Refuse a device that torch does not know or that is not there."""
    import torch

    try:
        torch.zeros(1, device=torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise SettingError(f"--device {device!r} is not there; {nearest(device, there)}") from None


def _check_words(order: Order) -> None:
    """Catch a word that no prompt contains before weights are loaded."""
    for word in order.words:
        for prompt in order.recipe.prompts:
            if word.casefold() not in prompt.casefold():
                raise SettingError(f"--heatmaps: {word!r} is not in the prompt {prompt!r:.200}")
