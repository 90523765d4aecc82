"""Three techniques at once: each acts where and when it was told, and none overwrites another.

python examples/combine.py
"""

from pathlib import Path

import torch

import attnctl


def main(out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")
    words = ["circle", "square"]
    techniques = [
        # moves the latents in the first half, so that both words find a place
        attnctl.AttendAndExcite(words, steps="0-50%", scale_factor=4, thresholds={}),
        # guides away from a weakened copy, more weakly towards the end
        attnctl.SoftPAG(scale=2.0, where="down:self", steps=attnctl.ramp(1.0, 0.2)),
        # watches
        attnctl.HeatMaps(words),
    ]
    prompts = [f"a {colour} circle and a blue square" for colour in ("red", "green")]
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]  # one a picture
    with attnctl.attach(pipe, techniques) as session:
        images = pipe(prompts, num_inference_steps=10, generator=generators).images
    print(session.report())
    out.mkdir(exist_ok=True)
    for item, image in enumerate(images):
        image.save(out / f"picture-{item}.png")
        session.maps.overlay(image, "circle", item=item).save(out / f"circle-{item}.png")
    print(f"The pictures and where “circle” looked are in {out.resolve()}")

    # Two techniques that want the same thing for themselves are refused before anything runs.
    try:
        attnctl.attach(pipe, [attnctl.APG(), attnctl.CFGZeroStar()])
    except attnctl.AttnctlError as error:
        print(f"refused: {error}")


if __name__ == "__main__":
    main()
