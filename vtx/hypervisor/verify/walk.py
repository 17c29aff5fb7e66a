"""``bochs-walk-1``: one access under guest paging and EPT, with every table read in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vtx.errors import InputError
from vtx.facts.msrs import Msr
from vtx.hypervisor.verify.corpus import Corpus, require
from vtx.hypervisor.verify.judgement import Verdict
from vtx.hypervisor.verify.processors import new_memory, shape_of
from vtx.machine.context import Access, Context
from vtx.machine.memory import Memory
from vtx.machine.mmu import Mmu
from vtx.machine.shape import Shape
from vtx.machine.walk import StepKind, Walk, WalkStatus

__all__ = ["ACCESSES", "WalkReplayer", "context_of", "verdict_of"]

ACCESSES = {"x": Access.FETCH, "r": Access.LOAD, "w": Access.STORE, "m": Access.MODIFY}
_KINDS = {
    WalkStatus.OK: "ok",
    WalkStatus.PAGE_FAULT: "pf",
    WalkStatus.NON_CANONICAL: "exception",
    WalkStatus.EPT_VIOLATION: "ept_violation",
    WalkStatus.EPT_MISCONFIGURATION: "ept_misconfig",
}
_GP = 13
_GLA_VALID = 1 << 7
#: Keys of a verdict that are compared, beside the reads and the flags set.
_VALUES = ("kind", "hpa", "ec", "addr", "vector", "qual", "gpa", "gla")


class WalkReplayer:
    """Replays the cases of one corpus.

    Parameters
    ----------
    corpus : Corpus
        Its header names the CPU.
    """

    def __init__(self, corpus: Corpus) -> None:
        header = corpus.header
        model = shape_of({"cpu_model": header.get("cpu_model"), **_caps(header)}, corpus.file)
        msrs = dict(model.msrs)
        msrs[Msr.IA32_VMX_EPT_VPID_CAP] = int(
            header.get("ept_vpid_cap", model.msr(Msr.IA32_VMX_EPT_VPID_CAP))
        )
        width = int(header.get("maxphyaddr", model.maxphyaddr))
        self.shape = Shape(model.name, msrs, width, model.linear_bits, model.features)
        self._memory = new_memory()
        self._mmu = Mmu(self._memory, self.shape)

    def replay(self, case: Mapping[str, Any]) -> tuple[Verdict, Verdict]:
        """Return what comes of a case here, and what came of it there."""
        require(case, "cr0", "cr3", "cr4", "efer", "eptp", "mem", "gva", "type", "verdict")
        if case["type"] not in ACCESSES:
            raise InputError(f"unknown type of access {case['type']!r}")
        with self.tables(case):
            self._mmu.flush_all()
            walk = self._mmu.walk(context_of(case), case["gva"], ACCESSES[case["type"]])
            ours = verdict_of(walk)
            ours["changed"] = self._changed(case["mem"])
        verdict = case["verdict"]
        theirs: Verdict = {key: verdict[key] for key in _VALUES if key in verdict}
        theirs["reads"] = [address for kind, address, _ in verdict["walk"] if kind == "r"]
        theirs["changed"] = sorted([address, value] for address, _, value in verdict["changed"])
        if theirs["kind"] == "ept_violation" and not theirs["qual"] & _GLA_VALID:
            theirs.pop("gla", None)
            ours.pop("gla", None)
        return ours, theirs

    @contextmanager
    def tables(self, case: Mapping[str, Any]) -> Iterator[Memory]:
        """Return memory that holds the tables of a case while it is needed."""
        memory = self._memory
        for address, size, value in case["mem"]:
            memory.write(address, value.to_bytes(size, "little"))
        try:
            yield memory
        finally:
            for address, size, _ in case["mem"]:
                memory.write(address, bytes(size))

    def _changed(self, memory: list[list[int]]) -> list[list[int]]:
        now = (
            (address, int.from_bytes(self._memory.read(address, size), "little"), value)
            for address, size, value in memory
        )
        return sorted([address, new] for address, new, old in now if new != old)


def _caps(header: Mapping[str, Any]) -> dict[str, Any]:
    return {"caps": header["caps"]} if "caps" in header else {}


def context_of(case: Mapping[str, Any]) -> Context:
    """Return what translation depends on in a case."""
    return Context(
        cr0=case["cr0"],
        cr3=case["cr3"],
        cr4=case["cr4"],
        efer=case["efer"],
        rflags=2 | case.get("ac", 0) << 18,
        cpl=case.get("cpl", 0),
        eptp=case["eptp"],
        mode_based_execute=bool(case.get("mbe")),
        pdptes=case.get("pdpte", (0, 0, 0, 0)),
    )


def verdict_of(walk: Walk) -> Verdict:
    """Return a walk as a verdict, with its reads in order."""
    ours: Verdict = {"kind": _KINDS.get(walk.status, walk.status.name.lower())}
    ours["reads"] = [step.address for step in walk.steps if step.kind is StepKind.READ]
    match walk.status:
        case WalkStatus.OK:
            ours["hpa"] = walk.hpa
        case WalkStatus.PAGE_FAULT:
            ours |= {"ec": walk.error_code, "addr": walk.gva}
        case WalkStatus.NON_CANONICAL:
            ours |= {"vector": _GP, "ec": 0}
        case WalkStatus.EPT_VIOLATION:
            ours |= {"qual": walk.qualification, "gpa": walk.gpa, "gla": walk.gva}
        case WalkStatus.EPT_MISCONFIGURATION:
            ours["gpa"] = walk.gpa
    return ours
