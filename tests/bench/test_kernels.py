"""The benchmark of sparse kernels on a small shape: every case runs and is right."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import kernels


@pytest.mark.parametrize("grid", [(1, 16, 16), (4, 8, 8)])
def test_every_case_is_timed_and_checked(
    grid: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape = kernels.Shape("small", 1, 2, 16, grid)
    monkeypatch.setattr(kernels, "CPU_SHAPES", (shape,))
    arguments = argparse.Namespace(device="cpu", repeats=2, threads=None, flex=False, out=tmp_path)
    kernels.run(arguments)
    (written,) = tmp_path.glob("*/kernels.json")
    record = json.loads(written.read_text())
    cases = {(case["case"], case["kernel"]): case for case in record["cases"]}
    assert len(cases) == len(record["cases"]) >= 13
    checked = [case for case in cases.values() if "max_error" in case]
    assert len(checked) >= 10
    for case in checked:
        assert case["max_error"] < 1e-5
        assert 0 < case["kept_share"] <= 1
        assert len(case["kernel_s"]) == len(case["dense_s"]) == 2
    assert "random, 97% sparse, blocks of 64" in capsys.readouterr().out
