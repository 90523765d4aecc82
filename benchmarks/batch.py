"""Show what `attnctl batch` promises: kills, processes, batch sizes, and rows that are checked.

python benchmarks/batch.py [FOLDER]   # ten minutes on two cores; writes benchmarks/batch.json
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PICTURES, KILLS = 200, 3
STEPS = 2
SHARED = 40
ROWS = 100_000
PROMPTS = (
    "a red circle and a blue square",
    "a green triangle",
    "a yellow star and a red circle",
    "a blue circle and a green square",
)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def main(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    result = {"steps": STEPS}
    result["rows"] = {kind: rows(folder, kind) for kind in ("yaml", "jsonl", "csv")}
    result["shared"] = shared(folder)
    result["killed"] = killed(folder)
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def killed(folder: Path) -> dict:
    """The same pictures without a stop, and with kills at random moments."""
    jobs = job_file(folder / "jobs.yaml", PICTURES, steps=STEPS)
    plain, stopped = folder / "plain", folder / "stopped"
    started = time.perf_counter()
    batch(jobs, plain)
    seconds = time.perf_counter() - started
    chance = random.Random(20)
    moments = []
    for number in range(KILLS):
        wanted = (number + chance.random()) * PICTURES / (KILLS + 1)
        process = start(jobs, stopped, "--resume")
        while len(list(stopped.glob("*.png"))) < wanted:
            time.sleep(0.05)
        time.sleep(chance.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        moments.append(len(list(stopped.glob("*.png"))))
    batch(jobs, stopped, "--resume")
    manifest = [json.loads(line) for line in (stopped / "manifest.jsonl").open()]
    return {
        "pictures": PICTURES,
        "killed_after": moments,
        "files": len(list(stopped.glob("*.png"))),
        "left_over": len(list(stopped.glob(".*.partial"))),
        "same_bytes": digests(plain) == digests(stopped),
        "manifest_done": sum(entry["status"] == "done" for entry in manifest),
        "manifest_lines": len(manifest),
        "seconds_without_kills": round(seconds, 1),
    }


def shared(folder: Path) -> dict:
    """The same pictures with one and two processes, alone and four together."""
    jobs = job_file(folder / "shared.yaml", SHARED, steps=STEPS)
    outs, seconds = {}, {}
    for processes in (1, 2):
        for size in (1, 4):
            name = f"{processes} processes, batch size {size}"
            out = folder / f"p{processes}b{size}"
            started = time.perf_counter()
            batch(jobs, out, "--batch-size", str(size), processes=processes)
            seconds[name] = round(time.perf_counter() - started, 1)
            outs[name] = digests(out)
    first = next(iter(outs.values()))
    return {
        "pictures": SHARED,
        "files": {name: len(found) for name, found in outs.items()},
        "same_names_and_bytes": {name: found == first for name, found in outs.items()},
        "seconds": seconds,
    }


def rows(folder: Path, kind: str) -> dict:
    """Check many rows without loading anything."""
    path = folder / f"rows.{kind}"
    with path.open("w") as file:
        if kind == "csv":
            file.write("prompt,seed,techniques\n")
        for seed in range(ROWS):
            prompt = PROMPTS[seed % len(PROMPTS)]
            if kind == "yaml":
                file.write(f"- {{prompt: {prompt}, seed: {seed}}}\n")
            elif kind == "jsonl":
                values = {"prompt": prompt, "seed": seed, "techniques": ["pag"]}
                file.write(json.dumps(values) + "\n")
            else:
                file.write(f'{prompt},{seed},"pag:scale=2.0"\n')
    code = (
        "import resource, sys, time; start = time.perf_counter();"
        "from attnctl.batch import read_jobs; jobs = read_jobs(sys.argv[1]);"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(len(jobs.jobs), time.perf_counter() - start, time.process_time(), peak)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], env=ENVIRONMENT, capture_output=True, check=True
    )
    count, seconds, cpu_seconds, peak_kb = done.stdout.split()
    assert int(count) == ROWS
    return {
        "seconds": round(float(seconds), 2),
        "cpu_seconds": round(float(cpu_seconds), 2),
        "peak_mb": round(int(peak_kb) / 1024),
    }


def job_file(path: Path, count: int, *, steps: int) -> Path:
    lines = [f"defaults: {{model: shapes, steps: {steps}, guidance: 5.0}}", "jobs:"]
    for seed in range(count):
        lines += [f"- prompt: {PROMPTS[seed % len(PROMPTS)]}", f"  seed: {seed}"]
        if seed % 2:
            lines.append('  techniques: [soft-pag: {scale: 2.0, where: "down:self"}]')
    path.write_text("\n".join(lines) + "\n")
    return path


def start(jobs: Path, out: Path, *more: str, processes: int = 1) -> subprocess.Popen:
    command = [sys.executable]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", "--standalone"]  # accelerate's needs GPUs or MPI
        command += [*launcher, "--nproc_per_node", str(processes)]
    command += ["-m", "attnctl", "batch", str(jobs), "--out", str(out), "--quiet", *more]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL)


def batch(jobs: Path, out: Path, *more: str, processes: int = 1) -> None:
    code = start(jobs, out, *more, processes=processes).wait()
    assert code == 0, code


def digests(out: Path) -> dict:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.glob("*.png"))
    }


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "batch-proof"))
