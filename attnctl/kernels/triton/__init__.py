"""Kernels written in Triton. `record` says whether they can run; the others import Triton."""
