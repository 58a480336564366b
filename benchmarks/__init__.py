"""Benchmarks, run as ``python -m fewstep.benchmarks.NAME`` from anywhere the package is installed."""
