"""Lesson 12: do for the guest what its INVLPG would. Then: vtx lab run 12 THIS_FILE."""

import vtx
from vtx import ExitReason, Field

ONE_ADDRESS, ONE_CONTEXT, ALL_CONTEXTS, ONE_CONTEXT_BUT_GLOBAL = 0, 1, 2, 3


def handle(cpu: vtx.Cpu, exit: vtx.Exit) -> None:
    """Emulate INVLPG and MOV to CR3, which exit in this guest."""
    vpid = cpu.vmread(Field.VPID)
    if exit.reason is ExitReason.INVLPG:
        # 1. Which linear address? exit.qualification. Which type of INVVPID forgets just that?
        #    cpu.invvpid(type, descriptor): the VPID is in bits 15:0 of the descriptor, the linear
        #    address in bits 127:64.
        pass
    elif exit.reason is ExitReason.CONTROL_REGISTER_ACCESS:
        # 2. The new value is in the register that exit.cr.register names; the guest's CR3 has to
        #    become that: cpu.guest.cr3.
        # 3. What does MOV to CR3 forget on a processor without a VMM, and what does it keep?
        new = getattr(cpu.guest, exit.cr.register)
        print(f"the guest wants CR3 = {new:#x}, with VPID {vpid}")
    cpu.skip(exit)
