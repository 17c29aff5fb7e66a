"""VM-entry checks on the VM-entry control fields (SDM, "VM-Entry Control Fields")."""

from __future__ import annotations

from vtx.facts.controls import Entry, Proc2
from vtx.facts.fields import Field as F
from vtx.facts.msrs import Msr
from vtx.machine.processor import Processor
from vtx.machine.registers import Cr0, Cr4
from vtx.machine.shape import Shape
from vtx.machine.vmcs import Vmcs
from vtx.rules.areas import ENTRY_CONTROLS as ENTRY
from vtx.rules.declaration import Checks, Live, only
from vtx.rules.entry_controls_execution import define_allowed_settings
from vtx.rules.entry_controls_exit import define_msr_area
from vtx.rules.injected import (
    DELIVER_ERROR_CODE,
    NESTED_EXCEPTION,
    VALID,
    EventType,
    injected,
    type_and_vector,
)
from vtx.rules.limits import cr4_may_be_1, has_monitor_trap_flag

check = Checks()

#: Bits of IA32_VMX_BASIC and IA32_VMX_MISC.
_BASIC_ANY_ERROR_CODE, _BASIC_NESTED_EXCEPTION, _MISC_ZERO_LENGTH = 56, 58, 30
_TYPE, _VECTOR = 0x700, 0xFF
_RESERVED = 0x7FFF_D000
_EVENT = only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE | _VECTOR)
_EVENT_TYPE = only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE)
_EVENT_TYPE_AND_ERROR = only(
    F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE | DELIVER_ERROR_CODE
)
_EVENT_AND_ERROR = only(
    F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE | _VECTOR | DELIVER_ERROR_CODE
)
#: Hardware exceptions that push an error code; #CP (21) is deliberately not among them.
_WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
#: Hardware exceptions that never push one. #CP (21) may be injected either way only where
#: IA32_VMX_BASIC[56] is 1.
_WITHOUT_ERROR_CODE = frozenset({*range(8), 9, 15, 16, *range(18, 32)})
_FRED_CALLS = frozenset({1, 2})
_MAXIMUM_LENGTH = 15

define_allowed_settings(check, ENTRY, "entry", "ctl.entry.reserved")


def _any_error_code(shape: Shape) -> bool:
    """IA32_VMX_BASIC[56]: error codes are not tied to vectors."""
    return bool(shape.msr(Msr.IA32_VMX_BASIC) >> _BASIC_ANY_ERROR_CODE & 1)


def _delivers_error_code(vmcs: Vmcs) -> int:
    return vmcs[F.VM_ENTRY_INTERRUPTION_INFORMATION] & DELIVER_ERROR_CODE


def _enters_real_mode(vmcs: Vmcs) -> bool:
    return bool(vmcs.proc2 & Proc2.UNRESTRICTED_GUEST) and not vmcs[F.GUEST_CR0] & Cr0.PE


@check("ctl.entry.inject.type_reserved", ENTRY, _EVENT_TYPE)
def injected_type_is_not_reserved(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected event does not have the reserved type 1."""
    return injected(vmcs) != EventType.RESERVED


@check(
    "ctl.entry.inject.type_other_event",
    ENTRY,
    _EVENT_TYPE,
    capability=("IA32_VMX_PROCBASED_CTLS[59]", "CPUID FRED"),
)
def injected_other_event_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected event has type 7 (other event) only on a CPU with the monitor trap flag or with
    FRED transitions."""
    shape = processor.shape
    return (
        injected(vmcs) != EventType.OTHER_EVENT
        or has_monitor_trap_flag(shape)
        or cr4_may_be_1(shape, Cr4.FRED)
    )


@check("ctl.entry.inject.vector_nmi", ENTRY, _EVENT)
def injected_nmi_has_vector_2(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected NMI (type 2) has vector 2."""
    event = type_and_vector(vmcs)
    return event is None or event[0] != EventType.NMI or event[1] == 2


@check("ctl.entry.inject.vector_hw_exception", ENTRY, _EVENT)
def injected_hardware_exception_is_an_exception(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected hardware exception (type 3) has a vector of 31 or less."""
    event = type_and_vector(vmcs)
    return event is None or event[0] != EventType.HARDWARE_EXCEPTION or event[1] <= 31


@check(
    "ctl.entry.inject.vector_other_event",
    ENTRY,
    _EVENT,
    only(F.GUEST_CR4, Cr4.FRED),
    capability=("IA32_VMX_PROCBASED_CTLS[59]", "CPUID FRED"),
    note="KVM without FRED accepts vector 0 only",
)
def injected_other_event_has_a_defined_vector(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected other event (type 7) has vector 0 (pending MTF VM exit) on a CPU with the monitor
    trap flag, or vector 1 (SYSCALL) or 2 (SYSENTER) if CR4.FRED of the guest is 1."""
    event = type_and_vector(vmcs)
    if event is None or event[0] != EventType.OTHER_EVENT:
        return True
    if event[1] == 0:
        return has_monitor_trap_flag(processor.shape)
    return event[1] in _FRED_CALLS and bool(vmcs[F.GUEST_CR4] & Cr4.FRED)


@check(
    "ctl.entry.inject.error_code_required",
    ENTRY,
    _EVENT_AND_ERROR,
    Proc2.UNRESTRICTED_GUEST,
    only(F.GUEST_CR0, Cr0.PE),
    capability=("IA32_VMX_BASIC[56]",),
    note="#CP (vector 21) is not in the set",
)
def injected_exception_delivers_its_error_code(vmcs: Vmcs, processor: Processor) -> bool:
    """Unless IA32_VMX_BASIC[56] is 1 or an unrestricted guest starts with CR0.PE 0, "deliver error
    code" is 1 for an injected hardware exception that has an error code (vectors 8, 10-14, 17)."""
    event = type_and_vector(vmcs)
    return (
        event is None
        or event[0] != EventType.HARDWARE_EXCEPTION
        or event[1] not in _WITH_ERROR_CODE
        or bool(_delivers_error_code(vmcs))
        or _enters_real_mode(vmcs)
        or _any_error_code(processor.shape)
    )


@check(
    "ctl.entry.inject.error_code_not_hw_exception",
    ENTRY,
    _EVENT_TYPE_AND_ERROR,
    note="holds whatever IA32_VMX_BASIC[56] says",
)
def only_a_hardware_exception_delivers_an_error_code(vmcs: Vmcs, processor: Processor) -> bool:
    """An injected event that is not a hardware exception has "deliver error code" 0."""
    return injected(vmcs) in (None, EventType.HARDWARE_EXCEPTION) or not _delivers_error_code(vmcs)


@check(
    "ctl.entry.inject.error_code_real_mode",
    ENTRY,
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | DELIVER_ERROR_CODE),
    Proc2.UNRESTRICTED_GUEST,
    only(F.GUEST_CR0, Cr0.PE),
    note="holds whatever IA32_VMX_BASIC[56] says",
)
def no_error_code_is_delivered_in_real_mode(vmcs: Vmcs, processor: Processor) -> bool:
    """An event injected into an unrestricted guest that starts with CR0.PE 0 has "deliver error
    code" 0."""
    return injected(vmcs) is None or not _delivers_error_code(vmcs) or not _enters_real_mode(vmcs)


@check(
    "ctl.entry.inject.error_code_forbidden_vector",
    ENTRY,
    _EVENT_AND_ERROR,
    capability=("IA32_VMX_BASIC[56]",),
)
def exception_without_error_code_delivers_none(vmcs: Vmcs, processor: Processor) -> bool:
    """Unless IA32_VMX_BASIC[56] is 1, "deliver error code" is 0 for an injected hardware exception
    that has no error code (vectors 0-7, 9, 15, 16, 18-31)."""
    event = type_and_vector(vmcs)
    return (
        event is None
        or event[0] != EventType.HARDWARE_EXCEPTION
        or event[1] not in _WITHOUT_ERROR_CODE
        or not _delivers_error_code(vmcs)
        or _any_error_code(processor.shape)
    )


@check(
    "ctl.entry.inject.nested_exception_bit",
    ENTRY,
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _TYPE | NESTED_EXCEPTION),
    capability=("IA32_VMX_BASIC[58]",),
    note="editions before FRED call bits 30:12 reserved",
)
def nested_exception_bit_is_supported(vmcs: Vmcs, processor: Processor) -> bool:
    """Bit 13 (nested exception) is 0 for an injected event unless it is a hardware exception and
    IA32_VMX_BASIC[58] is 1."""
    information = vmcs[F.VM_ENTRY_INTERRUPTION_INFORMATION]
    if not information & VALID or not information & NESTED_EXCEPTION:
        return True
    supported = processor.shape.msr(Msr.IA32_VMX_BASIC) >> _BASIC_NESTED_EXCEPTION & 1
    return bool(supported) and injected(vmcs) == EventType.HARDWARE_EXCEPTION


@check(
    "ctl.entry.inject.reserved",
    ENTRY,
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | _RESERVED),
)
def injection_reserved_bits_are_0(vmcs: Vmcs, processor: Processor) -> bool:
    """Bits 30:14 and 12 of the VM-entry interruption information are 0 for an injected event."""
    information = vmcs[F.VM_ENTRY_INTERRUPTION_INFORMATION]
    return not information & VALID or not information & _RESERVED


@check(
    "ctl.entry.inject.error_code_high",
    ENTRY,
    only(F.VM_ENTRY_INTERRUPTION_INFORMATION, VALID | DELIVER_ERROR_CODE),
    only(F.VM_ENTRY_EXCEPTION_ERROR_CODE, 0xFFFF_0000),
    note="editions before about 2020 said bits 31:15",
)
def injected_error_code_has_16_bits(vmcs: Vmcs, processor: Processor) -> bool:
    """If the VM entry delivers an error code, bits 31:16 of the VM-entry exception error code are
    0."""
    return (
        injected(vmcs) is None
        or not _delivers_error_code(vmcs)
        or vmcs[F.VM_ENTRY_EXCEPTION_ERROR_CODE] <= 0xFFFF
    )


def _define_length(name: str, kind: EventType, words: str, vectors: frozenset[int] | None) -> None:
    """Define the two checks on the instruction length of a software event."""
    read = _EVENT_TYPE if vectors is None else _EVENT

    def injects_it(vmcs: Vmcs) -> bool:
        event = type_and_vector(vmcs)
        return event is not None and event[0] == kind and (not vectors or event[1] in vectors)

    @check(
        f"ctl.entry.inject.length_max.{name}",
        ENTRY,
        read,
        F.VM_ENTRY_INSTRUCTION_LENGTH,
        title=f"{words}: the instruction has at most 15 bytes",
        rule=f"For an injected {words} the VM-entry instruction length is 15 or less.",
    )
    def instruction_is_not_too_long(vmcs: Vmcs, processor: Processor) -> bool:
        return not injects_it(vmcs) or vmcs[F.VM_ENTRY_INSTRUCTION_LENGTH] <= _MAXIMUM_LENGTH

    @check(
        f"ctl.entry.inject.length_zero.{name}",
        ENTRY,
        read,
        F.VM_ENTRY_INSTRUCTION_LENGTH,
        title=f"{words}: the instruction has at least one byte",
        rule=(
            f"For an injected {words} the VM-entry instruction length is not 0 unless "
            "IA32_VMX_MISC[30] is 1."
        ),
        capability=("IA32_VMX_MISC[30]",),
    )
    def instruction_has_a_length(vmcs: Vmcs, processor: Processor) -> bool:
        return (
            not injects_it(vmcs)
            or vmcs[F.VM_ENTRY_INSTRUCTION_LENGTH] != 0
            or processor.shape.misc(_MISC_ZERO_LENGTH)
        )


for _name, _kind, _words, _vectors in (
    ("software_interrupt", EventType.SOFTWARE_INTERRUPT, "software interrupt", None),
    (
        "privileged_software_exception",
        EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
        "privileged software exception",
        None,
    ),
    ("software_exception", EventType.SOFTWARE_EXCEPTION, "software exception", None),
    ("fred_syscall", EventType.OTHER_EVENT, "SYSCALL or SYSENTER event", _FRED_CALLS),
):
    _define_length(_name, _kind, _words, _vectors)


define_msr_area(
    check, ENTRY, "ctl.entry.msr_load", F.VM_ENTRY_MSR_LOAD_ADDRESS, F.VM_ENTRY_MSR_LOAD_COUNT
)


@check(
    "ctl.entry.entry_to_smm_outside_smm",
    ENTRY,
    Entry.ENTRY_TO_SMM,
    live=(Live.SMM,),
)
def entry_to_smm_comes_from_smm(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is not in SMM, "entry to SMM" is 0."""
    return processor.smm or not vmcs.entry & Entry.ENTRY_TO_SMM


@check(
    "ctl.entry.deactivate_dual_monitor_outside_smm",
    ENTRY,
    Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT,
    live=(Live.SMM,),
)
def dual_monitor_treatment_is_deactivated_in_smm(vmcs: Vmcs, processor: Processor) -> bool:
    """If the logical processor is not in SMM, "deactivate dual-monitor treatment" is 0."""
    return processor.smm or not vmcs.entry & Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT


@check(
    "ctl.entry.smm_bits_exclusive",
    ENTRY,
    Entry.ENTRY_TO_SMM,
    Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT,
)
def entry_to_smm_keeps_dual_monitor_treatment(vmcs: Vmcs, processor: Processor) -> bool:
    """The controls "entry to SMM" and "deactivate dual-monitor treatment" are not both 1."""
    both = Entry.ENTRY_TO_SMM | Entry.DEACTIVATE_DUAL_MONITOR_TREATMENT
    return vmcs.entry & both != both
