"""TLBs of any geometry over recorded streams: what hits, what misses, and what walks read.

A geometry comes from a YAML file or a CPU profile (:mod:`vtx.tlb.geometry`); several of them see a
stream in one pass, on one thread or more (:mod:`vtx.tlb.simulation`). What a geometry file can say,
and by which rules everything is counted, is described in ``docs/tlb.md``.
"""

from __future__ import annotations

from vtx.tlb.geometry import Array, Geometry, Level, PageSizes
from vtx.tlb.geometry_file import load_geometry, profile_geometry
from vtx.tlb.simulation import Result, Simulation, simulate

__all__ = [
    "Array",
    "Geometry",
    "Level",
    "PageSizes",
    "Result",
    "Simulation",
    "load_geometry",
    "profile_geometry",
    "simulate",
]
