"""What to do about a VMX instruction that failed, in half a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from vtx.facts.instruction_errors import InstructionError as Error

__all__ = ["HINTS", "NO_VMCS"]

_ALIGNED = "the address of a 4-KByte region, below the physical-address width: cpu.new_region()"

#: Where there is no current VMCS.
NO_VMCS: Final = "make one current with VMPTRLD; cpu.load(vmcs) does"

#: By VM-instruction error number.
HINTS: Final[Mapping[int, str]] = {
    Error.VMCLEAR_INVALID_PHYSICAL_ADDRESS: _ALIGNED,
    Error.VMPTRLD_INVALID_PHYSICAL_ADDRESS: _ALIGNED,
    Error.VMCLEAR_WITH_VMXON_POINTER: "the region of VMXON is no VMCS: use another one",
    Error.VMPTRLD_WITH_VMXON_POINTER: "the region of VMXON is no VMCS: use another one",
    Error.VMLAUNCH_NON_CLEAR_VMCS: "it was launched already: enter it with VMRESUME, or VMCLEAR "
    "it first",
    Error.VMRESUME_NON_LAUNCHED_VMCS: "the first entry of a VMCS is VMLAUNCH",
    Error.VMRESUME_AFTER_VMXOFF: "VMCLEAR and VMPTRLD the VMCS, then VMLAUNCH it",
    Error.VMPTRLD_INCORRECT_REVISION_ID: "write IA32_VMX_BASIC[30:0] into the first 4 bytes "
    "of the region, as cpu.new_region() does",
    Error.UNSUPPORTED_VMCS_COMPONENT: "vtx explain FIELD tells which CPUs have a field",
    Error.VMWRITE_READ_ONLY_COMPONENT: "VM-exit information fields can be written only where "
    "IA32_VMX_MISC[29] is 1",
    Error.VMXON_IN_VMX_ROOT_OPERATION: "it is in VMX operation already: VMXOFF leaves it",
    Error.ENTRY_EVENTS_BLOCKED_BY_MOV_SS: "enter one instruction later",
}
