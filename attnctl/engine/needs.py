"""What a technique declares of its needs, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from attnctl.engine.roles import Rows
from attnctl.where import Where

ReadKind = Literal["columns", "masses", "probs", "qk"]


@dataclass(frozen=True, slots=True)
class Read:
    """What a technique reads of an attention map.

    Attributes:
        what: ``"columns"`` probabilities of the text tokens (or of ``tokens``), ``"masses"`` of key
            groups, ``"probs"`` the whole map, ``"qk"`` query and key as they are.
        tokens: Key positions of the columns; ``None`` means all text tokens of the layout.
        groups: ``(K, g)`` weights for masses.
        where: Sites; ``None`` means the technique's own.
        branch: Rows of this guidance branch only; ``None`` means all of them.
        raw: Before any technique's edit.
        grad: Only in the gradient pass, with its graph.
    """

    what: ReadKind
    tokens: tuple[int, ...] | None = None
    groups: Tensor | None = None
    where: Where | None = None
    branch: str | None = "cond"
    raw: bool = False
    grad: bool = False


@dataclass(frozen=True, slots=True)
class OtherPrompt:
    """A prompt beside the pipeline's own, the same for all items of a run.

    Attributes:
        text: Encoded by the pipeline's own ``encode_prompt``, once a run.
        arguments: The denoiser's text arguments, ``(1, ...)`` each, if it is encoded already.
    """

    text: str
    arguments: Mapping[str, Tensor] | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What tells it from other prompts."""
        return (self.text, id(self.arguments))


@dataclass(frozen=True, slots=True)
class AddedRow:
    """A row that the session adds beside the rows of branch ``shadows``, and takes off again.

    Attributes:
        kind: Name by which its technique picks it.
        shadows: Guidance branch whose rows it copies.
        arguments: Arguments of the denoiser that it does not share with them.
        owner: Label of the technique that asked for it; the planner fills it in. Every technique
            has rows of its own, so that the terms of several add up.
        prompt: Prompt of its own; such a row differs from the start, so it is never replayed.
        site_kind: It is added only if the technique acts at sites of this kind.
        items: Pictures whose rows it copies; ``None`` means all of them.
        other_picture: Its latents are those that ``Technique.added_latents`` gives at each step;
            no other technique edits such a row.
    """

    kind: str
    shadows: str = "cond"
    arguments: Mapping[str, Tensor] | None = None
    prompt: OtherPrompt | None = None
    site_kind: str | None = None
    items: tuple[int, ...] | None = None
    other_picture: bool = False
    owner: str = ""

    def shadowed(self, rows: Rows) -> list[int]:
        """Places of the pipeline's rows that it copies."""
        return [
            place
            for place, row in enumerate(rows)
            if (row.branch, row.kind) == (self.shadows, "main")
            and (self.items is None or row.item in self.items)
        ]


@dataclass(frozen=True, slots=True)
class ModuleHook:
    """What a technique does at one module of a denoiser; see ``Technique.module_hooks``.

    It concerns the added rows of ``Technique.edits_rows``, or all rows if that is ``None``.

    Attributes:
        path: Dotted path of the module.
        when: ``"before"`` calls ``method`` before the module, ``"after"`` behind it; ``"skip"``
            gives back the module's inputs as its outputs, for those rows (or those of ``kind``).
        method: Name of the technique's method; it is given a ``ModuleCall``.
        streams: For ``"skip"``: arguments that the outputs continue, in the order of the outputs;
            with them, a forward of skipped rows alone does not run the module.
        kind: For ``"skip"``: kind of the added rows that skip, if not that of ``edits_rows``.
    """

    path: str
    when: Literal["before", "after", "skip"]
    method: str = ""
    streams: tuple[str, ...] = ()
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What the overridden methods of a technique do not already say.

    Attributes:
        reads: What it reads, and where.
        rows: Rows that it adds.
        other_prompt: Cross-attention sites can attend to it too (``AttentionCall.other_keys``).
        couples: It touches sibling rows, which must therefore share one forward.
        layout: It needs to know which tokens are text and how image tokens lie.
        prompts: It needs the token ids of the prompts.
        guidance: It needs the pipeline's guidance scale, to join the branches itself.
        families: Names of the model families that it works on; empty: every family.
        gradient_to: How far the gradient forward must run.
    """

    reads: tuple[Read, ...] = ()
    rows: tuple[AddedRow, ...] = ()
    other_prompt: OtherPrompt | None = None
    couples: bool = False
    layout: bool = False
    prompts: bool = False
    guidance: bool = False
    families: tuple[str, ...] = ()
    gradient_to: Literal["last read", "end"] = "last read"


@dataclass(frozen=True, slots=True)
class Move:
    """A step against the gradient of a loss.

    Attributes:
        size: Step size, a number or one per item ``(items,)``; 0 leaves an item as it is.
        again: Whether to evaluate the loss once more in this denoising step.
        note: Something that the report should show, once.
        turn: Makes the step of an optimiser from the gradient ``(items, ...)`` of the weighted
            loss, fp32; items that do not move have the gradient 0. Needs the claim ``optimiser``.
    """

    size: float | Tensor
    again: bool = False
    note: str = ""
    turn: Callable[[Tensor], Tensor] | None = None
