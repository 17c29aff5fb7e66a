"""VMX aborts: problems of a VM exit that leave no VMM to return to (SDM, "VMX Aborts")."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from vtx.errors import EmulationStopped
from vtx.facts.members import plain_members
from vtx.machine.registers import Activity
from vtx.machine.vmcs import ABORT_INDICATOR_OFFSET

if TYPE_CHECKING:
    from vtx.machine.processor import Processor

__all__ = ["AbortIndicator", "VmxAbort", "vmx_abort"]


@plain_members
class AbortIndicator(IntEnum):
    """VMX-abort indicators; a region holds one at byte offset 4 after a VMX abort."""

    SAVING_GUEST_MSRS = 1
    HOST_PDPTES = 2
    VMCS_CORRUPTED = 3
    LOADING_HOST_MSRS = 4
    MACHINE_CHECK = 5
    LEAVING_IA32E_MODE = 6


_TEXTS = {
    AbortIndicator.SAVING_GUEST_MSRS: "the VM-exit MSR-store area could not be processed",
    AbortIndicator.HOST_PDPTES: "a page-directory-pointer-table entry of the host is invalid",
    AbortIndicator.VMCS_CORRUPTED: "the current VMCS is corrupted",
    AbortIndicator.LOADING_HOST_MSRS: "the VM-exit MSR-load area could not be processed",
    AbortIndicator.MACHINE_CHECK: "there was a machine check during the VM exit",
    AbortIndicator.LEAVING_IA32E_MODE: (
        'the guest was in IA-32e mode and "host address-space size" is 0'
    ),
}


class VmxAbort(EmulationStopped):
    """A VMX abort: the logical processor is in the shutdown state.

    Attributes
    ----------
    indicator : AbortIndicator
        What the VMCS region holds at byte offset 4.
    detail : str
        Which entry of an area, and the like; may be empty.
    """

    def __init__(self, indicator: AbortIndicator, detail: str = "") -> None:
        self.indicator = indicator
        self.detail = detail
        text = _TEXTS[indicator]
        super().__init__(f"VMX abort {int(indicator)}: {text}{': ' + detail if detail else ''}")


def vmx_abort(processor: Processor, indicator: AbortIndicator, detail: str = "") -> VmxAbort:
    """Put a logical processor into the shutdown state by a VMX abort; return what to raise.

    The data of the current VMCS stay as they are; only the region's abort indicator is written.
    """
    address = processor.current_vmcs_pointer + ABORT_INDICATOR_OFFSET
    processor.memory.write_u32(address, indicator)
    if processor.vmcs is not None:
        processor.vmcs.abort_indicator = int(indicator)
    processor.non_root = False
    processor.regs.activity_state = Activity.SHUTDOWN
    return VmxAbort(indicator, detail)
