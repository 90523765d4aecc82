"""Measurements that are run by hand: ``python -m benchmarks SUITE`` from the repository's root."""
