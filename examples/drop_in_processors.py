"""Plain processors, for code that knows nothing of attnctl and calls set_attn_processor itself.

python examples/drop_in_processors.py
"""

from pathlib import Path

import torch

import attnctl


def main(out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe("a red circle", num_inference_steps=10, generator=generator).images[0]

    plain = draw()
    before = dict(pipe.unet.attn_processors)
    # Without a session there is no clock: only techniques that need none, in all steps.
    merging = attnctl.TokenMerging(steps=attnctl.Schedule.always())
    pipe.unet.set_attn_processor(attnctl.attn_processors(pipe.unet, [merging]))
    merged = draw()
    pipe.unet.set_attn_processor(before)

    assert draw().tobytes() == plain.tobytes()
    out.mkdir(exist_ok=True)
    plain.save(out / "plain.png")
    merged.save(out / "merged.png")
    print(f"Both pictures are in {out.resolve()}")


if __name__ == "__main__":
    main()
