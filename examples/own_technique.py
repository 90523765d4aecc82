"""A technique of your own: it turns down chosen words of the prompt, step by step.

python examples/own_technique.py
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

import attnctl
from attnctl import AttentionCall, Technique, Where, register


@register("fade-text")
@dataclass(frozen=True)
class FadeText(Technique):
    """Weaken what the text says to the picture.

    Attributes:
        amount: 0 leaves cross-attention as it is, 1 silences it.
    """

    amount: float = 0.5
    where: Where = field(default=Where("cross"), kw_only=True)

    def strength_at(self, index: int, total: int | None) -> float:
        return self.amount * super().strength_at(index, total)  # 0: not touched at all

    def edit_output(self, call: AttentionCall, out: torch.Tensor) -> torch.Tensor:
        rows = call.pick(branch="cond")
        return out.index_copy(0, rows, (1 - call.strength) * out[rows])


def main(out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")
    out.mkdir(exist_ok=True)
    for amount in (0.0, 0.5, 1.0):
        # once registered, recipes and the command line know it by its name, too
        with attnctl.attach(pipe, [FadeText(amount, steps="50%-")]) as session:
            generator = torch.Generator().manual_seed(0)
            image = pipe("a red circle", num_inference_steps=10, generator=generator).images[0]
        image.save(out / f"fade-{amount}.png")
        print(amount, "acted at steps", session.report().active_steps("fade-text"))
    print(f"Three pictures are in {out.resolve()}")


if __name__ == "__main__":
    main()
