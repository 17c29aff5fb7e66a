"""A machine in the state in which the cases of a corpus begin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtx.cpu import Cpu, Machine
from vtx.hypervisor.verify.golden import VMCS_REGION, VMXON_REGION
from vtx.hypervisor.verify.processors import PHYSICAL_BYTES, host_memory, shape_of
from vtx.machine.registers import Segment, TableRegister

__all__ = ["BareMachine", "contents", "numbers"]

_HOST_CR3, _HOST_GDT, _HOST_IDT, _HOST_TSS = 0x2_0000, 0x1_1000, 0x1_2000, 0x1_1800
_PAGE = 4096


def numbers(values: Mapping[str, int]) -> dict[int, int]:
    """Return a mapping by hexadecimal text as one by number."""
    return {int(key, 16): int(value) for key, value in values.items()}


def contents(memory: Mapping[str, str]) -> dict[int, bytes]:
    """Return memory by hexadecimal address, in hexadecimal, as bytes."""
    return {int(address, 16): bytes.fromhex(text) for address, text in memory.items()}


class BareMachine:
    """One processor that is made new for every case, over memory that is 0 but for what is given.

    Parameters
    ----------
    header : mapping
        Of the corpus.
    file : str
        For messages.
    memory : mapping of int to bytes
        What every case finds in memory, beside the host's tables.
    """

    def __init__(self, header: Mapping[str, Any], file: str, memory: Mapping[int, bytes]) -> None:
        self.shape = shape_of(header, file)
        self.machine = Machine(self.shape, memory_bytes=PHYSICAL_BYTES)
        revision = self.shape.revision_id.to_bytes(4, "little")
        self._memory = {**host_memory(), **memory}
        self._mmu = self.machine.cpus[0].mmu
        self._memory |= {VMXON_REGION: revision, VMCS_REGION: revision}

    def fresh(self, memory: Mapping[int, bytes]) -> Cpu:
        """Return a processor outside VMX operation, in 64-bit mode at CPL 0."""
        store = self.machine.memory
        store.clear()
        for address, content in self._memory.items():
            store.write(address, content)
        for address, content in memory.items():
            store.write(address, content)
        self._mmu.flush_all()
        cpu = Cpu(machine=self.machine, mmu=self._mmu)
        self.machine.cpus[:] = [cpu]
        regs = cpu.regs
        regs.cr0, regs.cr3, regs.cr4, regs.efer = 0x8000_0031, _HOST_CR3, 0x2020, 0xD00
        regs.rflags, regs.rsp = 2, 0x9_8000
        regs.gdtr, regs.idtr = TableRegister(_HOST_GDT, 0x7F), TableRegister(_HOST_IDT, 0xFFF)
        regs.tr = Segment(0x18, _HOST_TSS, 0x67, 0x8B)
        return cpu
