"""Figures of speed, each beside what is possible and what another program reaches.

One module for each group of benchmarks; :mod:`vtx.bench.registry` finds them. How a figure is taken
is in :mod:`vtx.bench.timing` and in ``docs/bench.md``.
"""
