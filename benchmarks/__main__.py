"""``python -m benchmarks SUITE``: run a suite, print its table, and keep the result as JSON."""

import argparse
from pathlib import Path

from benchmarks import kernels, pipelines

SUITES = {"kernels": kernels, "pipelines": pipelines}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    suites = parser.add_subparsers(dest="suite", required=True)
    for name, suite in SUITES.items():
        chosen = suites.add_parser(name, help=(suite.__doc__ or "").splitlines()[0])
        suite.add_arguments(chosen)
        chosen.add_argument(
            "--out",
            type=Path,
            default=Path(__file__).parent / "results",
            help="folder for the results, one folder a machine in it",
        )
    arguments = parser.parse_args()
    SUITES[arguments.suite].run(arguments)


if __name__ == "__main__":
    main()
