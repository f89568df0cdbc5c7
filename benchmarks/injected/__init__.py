"""Faults that are injected into real runs, for `benchmarks/chaos.py` and the tests of faults."""
