"""Noise levels, solvers, the table that a run is, its engine, and gradients through it."""
