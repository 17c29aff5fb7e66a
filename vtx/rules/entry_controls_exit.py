"""VM-entry checks on the VM-exit control fields (SDM, "VM-Exit Control Fields")."""

from __future__ import annotations

from vtx.facts.controls import Exit1, Pin
from vtx.facts.fields import FIELDS
from vtx.facts.fields import Field as F
from vtx.machine.processor import Processor
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import EXIT_CONTROLS as EXIT
from vtx.rules.declaration import Area, Checks, only
from vtx.rules.entry_controls_execution import define_allowed_settings
from vtx.rules.entry_controls_families import PHYSICAL_WIDTH, define_requirement
from vtx.rules.limits import allowed_settings, physical_width

__all__ = ["define_msr_area"]

check = Checks()

#: Bytes of one entry of an MSR area.
MSR_ENTRY_BYTES = 16
_ABOVE_32 = 0xFFFF_FFFF_0000_0000

define_allowed_settings(check, EXIT, "exit1", "ctl.exit.exit1_reserved")


@check(
    "ctl.exit.exit2_reserved",
    EXIT,
    Exit1.ACTIVATE_SECONDARY_CONTROLS,
    F.SECONDARY_VM_EXIT_CONTROLS,
    capability=("IA32_VMX_EXIT_CTLS2",),
)
def secondary_exit_controls_are_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """If "activate secondary controls" is 1, no bit that is 0 in IA32_VMX_EXIT_CTLS2 is 1 in the
    secondary VM-exit controls."""
    return not vmcs.exit2 & ~allowed_settings(processor.shape)["exit2"][1]


define_requirement(
    check,
    "ctl.exit.save_preemption_timer",
    EXIT,
    Exit1.SAVE_VMX_PREEMPTION_TIMER_VALUE,
    Pin.ACTIVATE_VMX_PREEMPTION_TIMER,
    note="not checked by VM entries that return from SMM",
)


def define_msr_area(check: Checks, area: Area, prefix: str, address: F, count: F) -> None:
    """Define the three checks on an MSR area: alignment, width, and width of its last byte."""
    name = FIELDS[address].sdm_name
    count_name = FIELDS[count].sdm_name
    when = f"If the {count_name} is not 0,"
    width = "no bit beyond the physical-address width"

    @check(
        f"{prefix}.align",
        area,
        count,
        only(address, 0xF),
        title=f"{name} is aligned to 16 bytes",
        rule=f"{when} bits 3:0 of the {name} are 0.",
    )
    def area_is_aligned(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[count] or not vmcs[address] & 0xF

    @check(
        f"{prefix}.width",
        area,
        count,
        only(address, _ABOVE_32),
        title=f"{name} is within the physical-address width",
        rule=f"{when} the {name} sets {width}.",
        capability=PHYSICAL_WIDTH,
    )
    def area_begins_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
        return not vmcs[count] or not vmcs[address] >> physical_width(processor.shape)

    @check(
        f"{prefix}.last_byte",
        area,
        count,
        address,
        title=f"the last byte at the {name} is within the physical-address width",
        rule=(
            f"{when} the address of the last byte of the area, the {name} plus 16 times the "
            f"{count_name} less 1, sets {width}."
        ),
        capability=PHYSICAL_WIDTH,
        note=(
            "more entries than IA32_VMX_MISC[27:25] recommends is undefined, not an error; nested "
            "KVM turns it into error 7"
        ),
    )
    def area_ends_within_the_physical_width(vmcs: Vmcs, processor: Processor) -> bool:
        entries = vmcs[count]
        last = vmcs[address] + MSR_ENTRY_BYTES * entries - 1
        return not entries or not last >> physical_width(processor.shape)


define_msr_area(
    check, EXIT, "ctl.exit.msr_store", F.VM_EXIT_MSR_STORE_ADDRESS, F.VM_EXIT_MSR_STORE_COUNT
)
define_msr_area(
    check, EXIT, "ctl.exit.msr_load", F.VM_EXIT_MSR_LOAD_ADDRESS, F.VM_EXIT_MSR_LOAD_COUNT
)
