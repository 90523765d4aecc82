"""Blocks through which the text runs as a stream of its own, beside that of the image."""

from attnctl.blocks import Block, ModelParts
from attnctl.errors import UnsupportedModelError

STREAMS = ("encoder_hidden_states", "hidden_states")
FAMILIES = ("FLUX.1", "SD3 and SD3.5")
NAMES = ", ".join(FAMILIES)


def text_blocks(technique: str, model: ModelParts) -> tuple[Block, ...]:
    """Blocks with two streams; FLUX's single blocks are the last ones of them.

    Raises:
        UnsupportedModelError: the model is of no family whose blocks are known to be so.
    """
    found = tuple(block for block in model.blocks if block.streams == STREAMS)
    if not found or model.family not in FAMILIES:
        raise UnsupportedModelError(
            f"{technique} acts where image and text attend jointly and keep a stream each; "
            f"{model.denoiser} of this pipeline ({model.family}) is not of its families: {NAMES}"
        )
    return found
