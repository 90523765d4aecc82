"""Compose an object of one picture into another: a red circle joins a blue square.

python examples/compose.py
"""

from pathlib import Path

from PIL import Image, ImageDraw

import attnctl
from attnctl.pipelines.compose import compose
from attnctl.pipelines.compose_settings import ComposeSettings


def main(out: Path = Path("out")) -> None:
    out.mkdir(exist_ok=True)
    scene = Image.new("RGB", (64, 64), (235, 235, 235))
    ImageDraw.Draw(scene).rectangle((7, 30, 24, 47), fill=(40, 80, 230))
    subject, mask = Image.new("RGB", (64, 64), (50, 50, 50)), Image.new("L", (64, 64))
    ImageDraw.Draw(subject).ellipse((12, 20, 39, 47), fill=(220, 40, 40))
    ImageDraw.Draw(mask).ellipse((12, 20, 39, 47), fill=255)

    pipe = attnctl.load_pipeline("shapes")
    pipe.set_progress_bar_config(disable=True)
    made = compose(
        pipe,
        scene,
        subject,
        "a blue square and a red circle",
        words=["red circle"],
        box=(0.5, 0.25, 0.95, 0.75),
        mask=mask,
        settings=ComposeSettings(domain="same"),
    )
    pictures = {
        "scene": scene,
        "object": subject,
        "mask": mask,
        "pasted": made.placement.pasted,
        "composed": made.composed,
    }
    for name, picture in pictures.items():
        picture.save(out / f"{name}.png")
    print(f"around the box {made.scores.psnr_outside:.1f} dB from the scene")
    print(
        f"Scene, object, mask, what pasting gives and the composed picture are in {out.resolve()}"
    )


if __name__ == "__main__":
    main()
