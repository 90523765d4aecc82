"""Search attention heads for an objective of your own: here, pictures with much red.

python examples/own_objective.py
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import attnctl
from attnctl.headhunter import HuntSettings, search


def redness(pictures: list[Image.Image], prompts: list[str]) -> list[float]:
    """One number a picture, more is better."""
    colours = [np.asarray(picture, dtype=float) for picture in pictures]
    return [float((c[..., 0] - c[..., 1:].mean(-1)).mean()) for c in colours]


def main(out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    settings = HuntSettings(layers="3", per_round=2, steps=4)  # a real search takes all layers
    found = search(pipe, redness, ["a red circle"], out, settings, resume=True, plot=False)
    print("best heads:", *((head.path, head.head, head.score) for head in found.heads.heads))

    with attnctl.attach(pipe, [attnctl.SoftPAG(heads=found.heads, scale=3.0)]):
        generator = torch.Generator().manual_seed(0)
        image = pipe("a red circle", num_inference_steps=10, generator=generator).images[0]
    image.save(out / "redder.png")
    print(f"The head set, every score and a picture are in {out.resolve()}")


if __name__ == "__main__":
    main()
