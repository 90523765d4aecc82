"""Draw a picture with Attend-and-Excite and heat maps, and save both.

python examples/steer_and_look.py [PROMPT] [WORD ...]
"""

import sys
from pathlib import Path

import torch

import attnctl


def main(prompt: str, words: list[str], out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")
    techniques = [
        attnctl.AttendAndExcite(words, steps=attnctl.until(0.5)),
        attnctl.HeatMaps(words),
    ]
    with attnctl.attach(pipe, techniques) as session:
        generator = torch.Generator().manual_seed(0)
        image = pipe(
            prompt, num_inference_steps=25, guidance_scale=5.0, generator=generator
        ).images[0]
        print(session.report())
    out.mkdir(exist_ok=True)
    image.save(out / "picture.png")
    for word in words:
        session.maps.overlay(image, word).save(out / f"{word}.png")
    print(f"The picture and its heat maps are in {out.resolve()}")


if __name__ == "__main__":
    given = sys.argv[1:] or ["a red circle and a blue square", "circle", "square"]
    main(given[0], given[1:])
