"""The checks that VMLAUNCH and VMRESUME make before they look at the VMCS's content.

SDM, "Basic VM-Entry Checks": in this order, and the instructions themselves make them
(:mod:`vtx.cpu`). They are listed here with the same predicates so that every check has its entry
in the registry; "is the launch state right?" depends on which of the two instructions executes.
"""

from __future__ import annotations

from vtx.facts.instruction_errors import InstructionError
from vtx.machine.processor import NO_VMCS, Processor
from vtx.machine.registers import Interruptibility
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import basic
from vtx.rules.declaration import Checks, Consequence, Kind, Live

check = Checks()

_UD = basic(Consequence(Kind.FAULT, vector="#UD"))
_GP = basic(Consequence(Kind.FAULT, vector="#GP(0)"))
_EXIT = basic(Consequence(Kind.VM_EXIT))
_INVALID = basic(Consequence(Kind.VMFAIL_INVALID))
_REGISTERS = (Live.REGISTERS,)


def _vmfail(error: InstructionError) -> Consequence:
    return Consequence(Kind.VMFAIL_VALID, error=error)


@check("basic.mode", _UD, live=_REGISTERS)
def instruction_set_mode_allows_vmx(vmcs: Vmcs, processor: Processor) -> bool:
    """VMLAUNCH and VMRESUME execute neither in virtual-8086 mode nor in compatibility mode."""
    return not (processor.regs.in_virtual_8086_mode or processor.regs.in_compatibility_mode)


@check("basic.vmx_operation", _UD, live=_REGISTERS)
def processor_is_in_vmx_operation(vmcs: Vmcs, processor: Processor) -> bool:
    """The logical processor is in VMX operation: VMXON has executed."""
    return processor.in_vmx


@check("basic.non_root", _EXIT, live=_REGISTERS)
def processor_is_in_vmx_root_operation(vmcs: Vmcs, processor: Processor) -> bool:
    """The instruction executes in VMX root operation; in non-root operation it causes an ordinary
    VM exit (reason 20 for VMLAUNCH, 24 for VMRESUME)."""
    return not processor.non_root


@check("basic.cpl", _GP, live=_REGISTERS)
def privilege_level_is_0(vmcs: Vmcs, processor: Processor) -> bool:
    """The current privilege level is 0."""
    return processor.regs.cpl == 0


@check("basic.no_current_vmcs", _INVALID, live=(Live.CURRENT_VMCS,))
def there_is_a_current_vmcs(vmcs: Vmcs, processor: Processor) -> bool:
    """There is a current VMCS: the current-VMCS pointer is not FFFFFFFF_FFFFFFFFH."""
    return processor.current_vmcs_pointer != NO_VMCS


@check("basic.current_vmcs_is_shadow", _INVALID, capability=("IA32_VMX_PROCBASED_CTLS2[46]",))
def current_vmcs_is_not_a_shadow(vmcs: Vmcs, processor: Processor) -> bool:
    """The current VMCS is not a shadow VMCS."""
    return not vmcs.shadow


@check(
    "basic.mov_ss_blocking",
    basic(_vmfail(InstructionError.ENTRY_EVENTS_BLOCKED_BY_MOV_SS)),
    live=_REGISTERS,
    note="the VMM's own interrupt shadow, not the guest's; blocking by STI does not matter",
)
def events_are_not_blocked_by_mov_ss(vmcs: Vmcs, processor: Processor) -> bool:
    """There is no blocking by MOV SS or POP SS on the logical processor that executes VMLAUNCH or
    VMRESUME."""
    return not processor.regs.interruptibility_state & Interruptibility.MOV_SS


@check(
    "basic.vmlaunch_launch_state",
    basic(_vmfail(InstructionError.VMLAUNCH_NON_CLEAR_VMCS)),
)
def launch_state_is_clear_for_vmlaunch(vmcs: Vmcs, processor: Processor) -> bool:
    """If the instruction is VMLAUNCH, the launch state of the current VMCS is clear."""
    return not vmcs.launched


@check(
    "basic.vmresume_launch_state",
    basic(_vmfail(InstructionError.VMRESUME_NON_LAUNCHED_VMCS)),
)
def launch_state_is_launched_for_vmresume(vmcs: Vmcs, processor: Processor) -> bool:
    """If the instruction is VMRESUME, the launch state of the current VMCS is launched."""
    return vmcs.launched
