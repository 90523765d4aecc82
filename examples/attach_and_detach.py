"""Attach, draw, detach: afterwards the pipeline gives the same bits as before.

python examples/attach_and_detach.py [PROMPT]
"""

import sys
from pathlib import Path

import torch

import attnctl


def main(prompt: str, out: Path = Path("out")) -> None:
    pipe = attnctl.load_pipeline("shapes")

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe(prompt, num_inference_steps=10, generator=generator).images[0]

    before = draw()

    # As a context manager: detached at the end of the block, also after an error or Ctrl-C.
    with attnctl.attach(pipe, [attnctl.SoftPAG(scale=2.0, where="down:self")]) as session:
        steered = draw()
    print(session.report())

    # Or by hand; a second detach() does nothing.
    session = attnctl.attach(pipe, [attnctl.PAG(where="mid:self", steps="0-50%")])
    draw()
    session.detach()

    assert draw().tobytes() == before.tobytes()
    out.mkdir(exist_ok=True)
    before.save(out / "before.png")
    steered.save(out / "steered.png")
    print(f"Both pictures are in {out.resolve()}")


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "a red circle and a blue square")
