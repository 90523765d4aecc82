"""TPG: guidance away from a copy of the model whose image tokens are shuffled."""

from dataclasses import dataclass
from typing import ClassVar

from attnctl.blocks import ModelParts, block_numbers
from attnctl.engine.module_edits import ModuleCall
from attnctl.engine.needs import ModuleHook
from attnctl.errors import NoSiteError, SettingError, UnsupportedModelError
from attnctl.ops.shuffle import keyed_permutation
from attnctl.perturbed import PERTURBED, PerturbedGuidance
from attnctl.registry import register
from attnctl.settings import refuse_selector

TOKENS = "hidden_states"
SDXL_BLOCKS = range(6, 24)


@register("tpg")
@dataclass(frozen=True)
class TPG(PerturbedGuidance):
    """Token-perturbation guidance: away from a copy of the model whose tokens are shuffled.

    In an added row, the image tokens are put into a random order at the entry of each chosen
    transformer block, and never back; the text stays. One order serves all items of a batch. It
    depends on ``seed``, the step and the block alone: no generator of yours or of torch is used.

    Attributes:
        scale: Weight of the guidance, unitless; 0 is off.
        blocks: Blocks in execution order from 0, such as (6, 7) or "6-23"; FLUX's single blocks
            count on behind its double ones, a UNet's go down, mid, up. None takes blocks 6 to 23,
            of the 24 on the way down of SDXL; for every other model name them.
        seed: Seed of the orders, a whole number.
        where: Must stay ``all``; ``blocks`` chooses.
    """

    reference: ClassVar[str] = "Rajabi et al., arXiv 2506.10036"

    blocks: tuple[int, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blocks is not None:
            object.__setattr__(self, "blocks", block_numbers(self.name, "blocks", self.blocks))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SettingError(f"{self.name}: seed={self.seed!r} must be a whole number")
        refuse_selector(self.name, self.where, "shuffles tokens at blocks")

    @property
    def perturbs(self) -> bool:
        """Whether any block is chosen."""
        return self.blocks is None or bool(self.blocks)

    def module_hooks(self, model: ModelParts) -> tuple[ModuleHook, ...]:
        wanted = self.blocks
        if wanted is None:
            down = sum(block.stage == "down" for block in model.blocks)
            if down != SDXL_BLOCKS.stop:
                raise NoSiteError(
                    f"{self.name}: its default blocks are those of SDXL, with "
                    f"{SDXL_BLOCKS.stop} blocks on the way down, but {model.describe_blocks()}; "
                    "choose with blocks="
                )
            wanted = tuple(SDXL_BLOCKS)
        chosen = model.blocks_at(self.name, wanted)
        return tuple(ModuleHook(block.path, "before", "shuffle_tokens") for block in chosen)

    def shuffle_tokens(self, call: ModuleCall) -> None:
        """Put the image tokens of the perturbed rows into another order."""
        tokens = call.arguments.get(TOKENS)
        if tokens is None or tokens.dim() != 3:
            raise UnsupportedModelError(
                f"{self.name}: {call.path} takes no {TOKENS} of shape (rows, tokens, width), but "
                f"{sorted(call.arguments)}; choose other blocks with blocks="
            )
        at = call.pick(tokens, kind=PERTURBED)
        order = keyed_permutation(tokens.shape[1], self.seed, call.step.iteration, call.path)
        shuffled = tokens[at][:, order.to(tokens.device)]
        call.arguments[TOKENS] = tokens.index_copy(0, at, shuffled)
