"""The benchmark of sparse kernels at toy size: every case runs, and every kernel is right."""

import json
import sys

import pytest

from benchmarks import kernels
from benchmarks.__main__ import main


def test_every_case_is_timed_and_checked(tmp_path, monkeypatch, capsys):
    order = ["kernels", "--toy", "--device", "cpu", "--repeats", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *order])
    main()
    (written,) = tmp_path.glob("*/kernels-toy.json")
    record = json.loads(written.read_text())
    cases = {(c["shape"]["name"], c["case"], c["kernel"]): c for c in record["cases"]}
    assert len(cases) == len(record["cases"]) >= 30
    assert {name for name, *_ in cases} == {shape.name for shape in kernels.TOY_SHAPES}
    checked = [case for case in cases.values() if "max_error" in case]
    assert len(checked) >= 20
    for case in checked:
        assert case["max_error"] < 1e-5
        assert 0 < case["kept_share"] <= 1
        assert len(case["kernel_s"]) == len(case["dense_s"]) == 2
    assert "random, 97% sparse, blocks of 64" in capsys.readouterr().out


def test_a_wrong_kernel_is_seen(tmp_path, monkeypatch):
    """The error is that of the kernel that is timed."""
    shape = kernels.TOY_SHAPES[0]
    tensors = kernels.draw(shape, "cpu", kernels.torch.float32)
    (layout, *_) = kernels.layouts_of(shape).values()
    out, _ = kernels.block_sparse_attention(*tensors, layout, kernel="cpu-gather")
    assert kernels.largest_error(layout, tensors, out) < 1e-5
    assert kernels.largest_error(layout, tensors, out * 1.01) > 1e-4
    asked = []
    plain = kernels.block_sparse_attention

    def spy(*given, kernel="auto", **more):
        asked.append(kernel)
        return plain(*given, kernel=kernel, **more)

    monkeypatch.setattr(kernels, "block_sparse_attention", spy)
    parser = kernels.argparse.ArgumentParser()
    kernels.add_arguments(parser)
    arguments = parser.parse_args(["--toy", "--device", "cpu", "--repeats", "1"])
    kernels.measure_layouts(shape, tensors, arguments)
    assert "auto" not in asked


@pytest.mark.parametrize("shape", kernels.CUDA_SHAPES, ids=lambda shape: shape.name)
def test_real_sizes_have_layouts(shape):
    assert shape.tokens in (4096, 4608, 17776, 32760)
