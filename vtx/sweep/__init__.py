"""Sweeps: traces x profiles x options, over processes or a Dask cluster, resumable at any point."""

from __future__ import annotations

from vtx.sweep.cell import Cell, run_cell
from vtx.sweep.engine import Report, sweep
from vtx.sweep.plan import Plan, load_plan

__all__ = ["Cell", "Plan", "Report", "load_plan", "run_cell", "sweep"]
