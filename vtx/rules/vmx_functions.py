"""VMFUNC, and its one function: EPTP switching (SDM, "VM Functions").

The numbered comments are the conditions of the instruction reference, in its order. A listing's
VMFUNC comes here through :mod:`vtx.rules.exiting_rules` and :mod:`vtx.rules.execution_vmx`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtx.bits import MASK32
from vtx.facts.controls import Proc2, VmFunction
from vtx.facts.fields import Field
from vtx.facts.msrs import Msr
from vtx.rules.execution_eptp import eptp_is_valid
from vtx.rules.physical import read_u64
from vtx.rules.vmx_outcomes import invalid_opcode

if TYPE_CHECKING:
    from vtx.machine.exit_information import ExitInformation
    from vtx.machine.processor import Processor

__all__ = ["exits", "invoke", "vmfunc"]

_LAST_FUNCTION = 63
_EPTP_LIST_ENTRIES = 512
_WALK_LENGTH = 0x38
_TRACE_EN = 1


def vmfunc(processor: Processor) -> ExitInformation | None:
    """VMFUNC: invoke the VM function in EAX with the argument in ECX.

    Returns
    -------
    ExitInformation or None
        The VM exit that it causes; None after success.

    Raises
    ------
    GuestFault
    """
    # 1. VMX non-root operation.
    if not processor.non_root:
        raise invalid_opcode("VMFUNC", "outside VMX non-root operation")
    vmcs = processor.vmcs
    assert vmcs is not None
    # 2. "Enable VM functions".
    if not vmcs.proc2 & Proc2.ENABLE_VM_FUNCTIONS:
        raise invalid_opcode("VMFUNC", 'with "enable VM functions" 0')
    function = processor.regs.rax & MASK32
    # 3. There are 64 functions.
    if function > _LAST_FUNCTION:
        raise invalid_opcode("VMFUNC", f"with function {function}")
    if exits(processor):
        from vtx.rules.vmx_exits import exit_of

        return exit_of(processor, "vmfunc")
    invoke(processor)
    return None


def exits(processor: Processor) -> bool:
    """Tell whether VMFUNC exits: the function is not enabled, or EPTP switching cannot be done."""
    vmcs, regs = processor.vmcs, processor.regs
    assert vmcs is not None
    function = regs.rax & MASK32
    # 4. The function must be enabled.
    if not vmcs.vm_functions >> function & 1:
        return True
    if 1 << function != VmFunction.EPTP_SWITCHING:
        return False
    tracing = regs.msrs.get(Msr.IA32_RTIT_CTL, 0) & _TRACE_EN
    # 5. Not while Intel PT writes to guest-physical addresses.
    if vmcs.proc2 & Proc2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES and tracing:
        return True
    # 6. The list has 512 entries.
    if regs.rcx & MASK32 >= _EPTP_LIST_ENTRIES:
        return True
    eptp = _listed(processor)
    other_walk = (eptp ^ vmcs[Field.EPT_POINTER]) & _WALK_LENGTH
    # 7. The entry must be acceptable to VM entry, and walk as many levels as the current one.
    return bool(other_walk) or not eptp_is_valid(processor, eptp)


def _listed(processor: Processor) -> int:
    """Return the entry of the EPTP list that ECX selects."""
    assert processor.vmcs is not None
    index = processor.regs.rcx & MASK32
    return read_u64(processor, processor.vmcs[Field.EPTP_LIST_ADDRESS] + 8 * index)


def invoke(processor: Processor) -> None:
    """Do the VM function in EAX, of which :func:`exits` says that it does not exit.

    EPTP switching takes the EPT pointer that ECX selects; no other function is defined.
    """
    vmcs = processor.vmcs
    assert vmcs is not None
    if 1 << (processor.regs.rax & MASK32) != VmFunction.EPTP_SWITCHING:
        return
    eptp = _listed(processor)
    vmcs[Field.EPT_POINTER] = eptp
    processor.context.eptp = eptp
    if processor.shape.supports(Proc2.EPT_VIOLATION_VE):
        vmcs[Field.EPTP_INDEX] = processor.regs.rcx & 0xFFFF
    if not vmcs.proc2 & Proc2.ENABLE_VPID:
        processor.mmu.flush_vpid(0)
