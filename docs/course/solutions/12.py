"""Lesson 12: INVLPG and MOV to CR3, emulated."""

import vtx
from vtx import ExitReason, Field

ONE_ADDRESS, ONE_CONTEXT, ALL_CONTEXTS, ONE_CONTEXT_BUT_GLOBAL = 0, 1, 2, 3


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Emulate INVLPG and MOV to CR3."""
    vpid = cpu.vmread(Field.VPID)
    if exit.reason is ExitReason.INVLPG:
        cpu.invvpid(ONE_ADDRESS, exit.qualification << 64 | vpid)
    elif exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
        cpu.guest.cr3 = getattr(cpu.guest, exit.cr.register)
        cpu.invvpid(ONE_CONTEXT_BUT_GLOBAL, vpid)
    cpu.skip(exit)
