"""Transformer blocks of a denoiser, found from the attention modules that they hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnctl.errors import NoSiteError, SettingError
from attnctl.sites import BlockList, Site


@dataclass(frozen=True, slots=True)
class Block:
    """One transformer block: a module whose input and output are streams of tokens.

    Attributes:
        path: Dotted path in the denoiser.
        stage: Where it stands: ``"down"``, ``"mid"``, ``"up"``; ``"double"``, ``"single"``;
            ``"block"``; ``"control"``.
        index: Position in execution order, from 0; double blocks come before single ones.
        streams: Arguments that its outputs continue, in the order of the outputs; empty if the
            family does not say.
    """

    path: str
    stage: str
    index: int
    streams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a technique may put module hooks on.

    Attributes:
        denoiser: Attribute of the pipeline that holds the model.
        family: Name of the model's family.
        blocks: Its transformer blocks in execution order.
        sites: Its attention sites in execution order.
    """

    denoiser: str
    family: str
    blocks: tuple[Block, ...]
    sites: tuple[Site, ...]

    def blocks_at(self, technique: str, indices: Sequence[int]) -> tuple[Block, ...]:
        """The blocks of these indices.

        Raises:
            NoSiteError: the model has no such block; the message says which there are.
        """
        missing = [index for index in indices if index >= len(self.blocks)]
        if missing:
            raise NoSiteError(
                f"{technique}: blocks={list(indices)} asks for block {missing[0]}, but "
                f"{self.describe_blocks()}; choose with blocks="
            )
        return tuple(self.blocks[index] for index in indices)

    def describe_blocks(self) -> str:
        """Count and names of the blocks, for messages."""
        if not self.blocks:
            return f"{self.denoiser} ({self.family}) has no transformer blocks"
        stages: dict[str, list[Block]] = {}
        for block in self.blocks:
            stages.setdefault(block.stage, []).append(block)
        parts = [
            f"{stage} {blocks[0].index}-{blocks[-1].index} ({blocks[0].path} to {blocks[-1].path})"
            for stage, blocks in stages.items()
        ]
        return f"{self.denoiser} ({self.family}) has {len(self.blocks)}: {', '.join(parts)}"


def find_blocks(sites: Iterable[Site], stacks: Sequence[BlockList]) -> tuple[Block, ...]:
    """Transformer blocks that hold these attention sites, in execution order.

    A block is the member of a list of modules that a site stands in. Blocks whose every site
    attends over frames alone (AnimateDiff's motion modules) are left out.
    """
    streams = {stack.path: stack.streams for stack in stacks}
    found: dict[str, str] = {}
    for site in sites:
        path = block_path(site)
        if path and site.kind != "temporal":
            found.setdefault(path, site.stage)
    return tuple(
        Block(path, stage, index, streams.get(path.rpartition(".")[0], ()))
        for index, (path, stage) in enumerate(found.items())
    )


def block_path(site: Site) -> str:
    """Path of the innermost block that a site stands in; empty if it stands in none."""
    parts = site.path.split(".")
    if parts[-1].isdigit():
        return ""  # the attention module is itself a member of the list
    while parts and not parts[-1].isdigit():
        parts.pop()
    return ".".join(parts)


def block_numbers(technique: str, name: str, value: object) -> tuple[int, ...]:
    """Read block indices: a number, several, or a text such as ``"7-9"`` or ``"3+5-6"``.

    Raises:
        SettingError: it is none of these.
    """
    try:
        if isinstance(value, str):
            numbers = _read_numbers(value)
        else:
            numbers = list(value) if isinstance(value, Iterable) else [value]
    except ValueError:
        numbers = [None]
    if all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        return tuple(dict.fromkeys(int(str(n)) for n in numbers))
    raise SettingError(
        f"{technique}: {name}={value!r} must be block indices from 0, such as (7, 8, 9) or '7-9'"
    )


def _read_numbers(text: str) -> list[int]:
    numbers: list[int] = []
    for part in text.split("+") if text.strip() else ():
        first, is_range, last = part.partition("-")
        numbers.extend(range(int(first), int(last if is_range else first) + 1))
    return numbers
