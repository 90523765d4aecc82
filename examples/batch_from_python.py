"""A batch from Python: a sweep with a pipeline of your own, a manifest, and a page to look at.

python examples/batch_from_python.py
"""

import json
from pathlib import Path

import attnctl
from attnctl.batch import BatchRun, BatchSettings, jobs_from


def load(model: str):
    """Give the pipeline for a model's name: the place for LoRA weights, dtype and device."""
    pipe = attnctl.load_pipeline(model, local_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def main(out: Path = Path("out")) -> None:
    jobs = jobs_from(
        [{"prompt": "a red circle and a blue square"}, {"prompt": "a green triangle"}],
        defaults={"steps": 4, "techniques": [{"soft-pag": {"where": "down:self"}}]},
        matrix={"seed": [0, 1], "soft-pag.scale": [1.0, 2.0]},
    )
    # resume: what is done already, in this or an earlier run, is not made again
    batch = BatchRun(jobs, out, BatchSettings(batch_size=2, resume=True), load=load)
    outcome = batch.run(say=print)
    for line in outcome.files["manifest"].read_text().splitlines():
        entry = json.loads(line)
        print(entry["status"], entry["path"], entry["techniques"])
    print(f"{outcome.done} pictures, a manifest and index.html are in {out.resolve()}")


if __name__ == "__main__":
    main()
