"""A guest without KVM: runs the measurement's few instructions, with a clock that we set."""

from __future__ import annotations

from collections import deque

import capstone
from capstone import x86

from vtx.host.guest import MEMORY_BYTES
from vtx.host.kvm import KvmExit

MASK = 0xFFFF_FFFF


class FakeGuest:
    """Executes code as the guest's processor would.

    Parameters
    ----------
    costs : dict
        Ticks of ``"cpuid"``, of ``"out 0x21"`` and ``"out 0xf4"``, of ``"touch"`` (the first write
        to a page of memory) and of ``"mmio"``; all other instructions take one tick.
    """

    def __init__(self, costs: dict[str, int]) -> None:
        self.costs = costs
        self.memory = bytearray(MEMORY_BYTES)
        self.touched: set[int] = set()
        self.registers: dict[str, int] = {}
        self.clock = 5_000_000_000
        self.executed: list[str] = []
        self.pending: deque[KvmExit] = deque()
        self._decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_32)
        self._decoder.detail = True

    def write(self, address: int, data: bytes) -> None:
        self.memory[address : address + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        return bytes(self.memory[address : address + size])

    def start(self, address: int) -> None:
        self.pc, self.zero = address, False
        code = bytes(self.memory[address : address + 128])
        self._code = {i.address: i for i in self._decoder.disasm(code, address)}
        self.executed = []

    def run(self) -> KvmExit:
        while True:
            instruction = self._code[self.pc]
            self.pc += instruction.size
            if len(self.executed) < 100:
                self.executed.append(instruction.mnemonic)
            self.clock += 1
            found = getattr(self, f"_{instruction.mnemonic}")(instruction)
            if found is not None:
                return found

    def _value(self, instruction, operand) -> int:
        if operand.type == x86.X86_OP_IMM:
            return operand.imm & MASK
        return self.registers.get(_wide(instruction.reg_name(operand.reg)), 0)

    def _set(self, instruction, value: int) -> None:
        self.registers[_wide(instruction.reg_name(instruction.operands[0].reg))] = value & MASK

    def _lfence(self, _) -> None:
        return None

    def _rdtsc(self, _) -> None:
        self.registers["eax"] = self.clock & MASK

    def _cpuid(self, _) -> None:
        self.clock += self.costs["cpuid"]
        self.registers.update(eax=1, ebx=2, ecx=3, edx=4)

    def _mov(self, instruction) -> KvmExit | None:
        to, of = instruction.operands
        if to.type != x86.X86_OP_MEM:
            self._set(instruction, self._value(instruction, of))
            return None
        base = instruction.reg_name(to.mem.base) if to.mem.base else ""
        address = (self.registers.get(base, 0) + to.mem.disp) & MASK
        if address >= len(self.memory):
            self.clock += self.costs["mmio"]
            return KvmExit(6, 0)
        if to.size == 4:
            value = self._value(instruction, of)
            self.memory[address : address + 4] = value.to_bytes(4, "little")
        elif address >> 12 not in self.touched:
            self.touched.add(address >> 12)
            self.clock += self.costs["touch"]
        return None

    def _xor(self, instruction) -> None:
        self._set(instruction, 0)

    def _sub(self, instruction) -> None:
        one, other = (self._value(instruction, operand) for operand in instruction.operands)
        self._set(instruction, one - other)

    def _add(self, instruction) -> None:
        one, other = (self._value(instruction, operand) for operand in instruction.operands)
        self._set(instruction, one + other)

    def _dec(self, instruction) -> None:
        value = self._value(instruction, instruction.operands[0]) - 1
        self.zero = value == 0
        self._set(instruction, value)

    def _jne(self, instruction) -> None:
        if not self.zero:
            self.pc = instruction.operands[0].imm

    def _out(self, instruction) -> KvmExit | None:
        port = instruction.operands[0].imm & 0xFF
        self.clock += self.costs.get(f"out {port:#x}", 0)
        if port == 0x21:
            return None
        return KvmExit(2, port)


def _wide(name: str) -> str:
    return {"al": "eax"}.get(name, name)
