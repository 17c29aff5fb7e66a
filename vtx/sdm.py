"""Sections of the Intel SDM that the code cites, by title.

Section numbers move between editions, titles hardly ever, so code cites a constant of this module
and prints the title; the numbers are those of the pinned revision. A constant is named for its
title; where two sections share a title, the second says what it is about.
"""

from typing import NamedTuple

__all__ = ["DOCUMENT", "REVISION", "SECTIONS", "Section", "find_section"]

#: The pinned revision: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 3.
REVISION = "092"
DOCUMENT = "Intel SDM, volume 3, revision 092 (June 2026)"

#: The chapters on VMX had numbers three lower in the editions of 2016 to 2022.
_VMX_CHAPTERS = range(26, 34)
_CHAPTER_SHIFT = 3


class Section(NamedTuple):
    """One section of the manual.

    Attributes
    ----------
    title : str
        The title, which is how the section is cited.
    number : str
        Its number in the pinned revision.
    number_2022 : str
        Its number in the editions of 2016 to 2022 (chapter 26 was 23 then, and so on).
    """

    title: str
    number: str
    number_2022: str

    def __str__(self) -> str:
        return f'SDM, "{self.title}"'

    @property
    def citation(self) -> str:
        """Title and number in the pinned revision, for output that people look up."""
        return f"{self} ({self.number} in revision {REVISION})"


SECTIONS: list[Section] = []


def _section(number: str, title: str) -> Section:
    """Add a section to the table; the older number follows from the shift of the chapters."""
    chapter, dot, rest = number.partition(".")
    shifted = chapter.isdigit() and int(chapter) in _VMX_CHAPTERS
    old = f"{int(chapter) - _CHAPTER_SHIFT}{dot}{rest}" if shifted else number
    section = Section(title, number, old)
    SECTIONS.append(section)
    return section


def find_section(what: str) -> Section:
    """Return the section with this number or title (the first of that title).

    Raises
    ------
    KeyError
        The code cites no such section.
    """
    wanted = what.strip().casefold()
    for section in SECTIONS:
        if wanted in (section.number.casefold(), section.title.casefold()):
            return section
    raise KeyError(what)


# Virtual-Machine Control Structures
FORMAT_OF_THE_VMCS_REGION = _section("27.2", "Format of the VMCS Region")
GUEST_REGISTER_STATE = _section("27.4.1", "Guest Register State")
GUEST_NON_REGISTER_STATE = _section("27.4.2", "Guest Non-Register State")
HOST_STATE_AREA = _section("27.5", "Host-State Area")
PIN_BASED_VM_EXECUTION_CONTROLS = _section("27.6.1", "Pin-Based VM-Execution Controls")
PROCESSOR_BASED_VM_EXECUTION_CONTROLS = _section("27.6.2", "Processor-Based VM-Execution Controls")
EXCEPTION_BITMAP = _section("27.6.3", "Exception Bitmap")
I_O_BITMAP_ADDRESSES = _section("27.6.4", "I/O-Bitmap Addresses")
TIME_STAMP_COUNTER_OFFSET_AND_MULTIPLIER = _section(
    "27.6.5", "Time-Stamp Counter Offset and Multiplier"
)
GUEST_HOST_MASKS_AND_READ_SHADOWS_FOR_CR0_AND_CR4 = _section(
    "27.6.6", "Guest/Host Masks and Read Shadows for CR0 and CR4"
)
CR3_TARGET_CONTROLS = _section("27.6.7", "CR3-Target Controls")
CONTROLS_FOR_APIC_VIRTUALIZATION = _section("27.6.8", "Controls for APIC Virtualization")
MSR_BITMAP_ADDRESS = _section("27.6.9", "MSR-Bitmap Address")
EXECUTIVE_VMCS_POINTER = _section("27.6.10", "Executive-VMCS Pointer")
EXTENDED_PAGE_TABLE_POINTER_EPTP = _section("27.6.11", "Extended-Page-Table Pointer (EPTP)")
VIRTUAL_PROCESSOR_IDENTIFIER_VPID = _section("27.6.12", "Virtual-Processor Identifier (VPID)")
CONTROLS_FOR_PAUSE_LOOP_EXITING = _section("27.6.13", "Controls for PAUSE-Loop Exiting")
VM_FUNCTION_CONTROLS = _section("27.6.14", "VM-Function Controls")
VMCS_SHADOWING_BITMAP_ADDRESSES = _section("27.6.15", "VMCS Shadowing Bitmap Addresses")
CONTROLS_FOR_VIRTUALIZATION_EXCEPTIONS = _section(
    "27.6.19", "Controls for Virtualization Exceptions"
)
XSS_EXITING_BITMAP = _section("27.6.20", "XSS-Exiting Bitmap")
VM_EXIT_CONTROLS = _section("27.7.1", "VM-Exit Controls")
VM_EXIT_CONTROLS_FOR_MSRS = _section("27.7.2", "VM-Exit Controls for MSRs")
VM_ENTRY_CONTROLS = _section("27.8.1", "VM-Entry Controls")
VM_ENTRY_CONTROLS_FOR_MSRS = _section("27.8.2", "VM-Entry Controls for MSRs")
VM_ENTRY_CONTROLS_FOR_EVENT_INJECTION = _section("27.8.3", "VM-Entry Controls for Event Injection")
VM_EXIT_INFORMATION_FIELDS = _section("27.9", "VM-Exit Information Fields")
INFORMATION_FOR_VM_EXITS_DUE_TO_VECTORED_EVENTS = _section(
    "27.9.2", "Information for VM Exits Due to Vectored Events"
)
INFORMATION_FOR_VM_EXITS_THAT_OCCUR_DURING_EVENT_DELIVERY = _section(
    "27.9.3", "Information for VM Exits That Occur During Event Delivery"
)
INFORMATION_FOR_VM_EXITS_DUE_TO_INSTRUCTION_EXECUTION = _section(
    "27.9.4", "Information for VM Exits Due to Instruction Execution"
)
VM_INSTRUCTION_ERROR_FIELD = _section("27.9.5", "VM-Instruction Error Field")
VMCS_TYPES_ORDINARY_AND_SHADOW = _section("27.10", "VMCS Types: Ordinary and Shadow")
SOFTWARE_USE_OF_VIRTUAL_MACHINE_CONTROL_STRUCTURES = _section(
    "27.11.1", "Software Use of Virtual-Machine Control Structures"
)
VMREAD_VMWRITE_AND_ENCODINGS_OF_VMCS_FIELDS = _section(
    "27.11.2", "VMREAD, VMWRITE, and Encodings of VMCS Fields"
)
INITIALIZING_A_VMCS = _section("27.11.3", "Initializing a VMCS")
SOFTWARE_ACCESS_TO_RELATED_STRUCTURES = _section("27.11.4", "Software Access to Related Structures")
VMXON_REGION = _section("27.11.5", "VMXON Region")

# VMX Non-Root Operation
INSTRUCTIONS_THAT_CAUSE_VM_EXITS = _section("28.1", "Instructions That Cause VM Exits")
RELATIVE_PRIORITY_OF_FAULTS_AND_VM_EXITS = _section(
    "28.1.1", "Relative Priority of Faults and VM Exits"
)
INSTRUCTIONS_THAT_CAUSE_VM_EXITS_UNCONDITIONALLY = _section(
    "28.1.2", "Instructions That Cause VM Exits Unconditionally"
)
INSTRUCTIONS_THAT_CAUSE_VM_EXITS_CONDITIONALLY = _section(
    "28.1.3", "Instructions That Cause VM Exits Conditionally"
)
OTHER_CAUSES_OF_VM_EXITS = _section("28.2", "Other Causes of VM Exits")
CHANGES_TO_INSTRUCTION_BEHAVIOR_IN_VMX_NON_ROOT_OPERATION = _section(
    "28.3", "Changes to Instruction Behavior in VMX Non-Root Operation"
)
EVENT_BLOCKING = _section("28.4.1", "Event Blocking")
TREATMENT_OF_TASK_SWITCHES = _section("28.4.2", "Treatment of Task Switches")
SHADOW_STACK_UPDATES = _section("28.4.3", "Shadow-Stack Updates")
VMX_PREEMPTION_TIMER = _section("28.5.1", "VMX-Preemption Timer")
MONITOR_TRAP_FLAG = _section("28.5.2", "Monitor Trap Flag")
VM_FUNCTIONS = _section("28.5.7", "VM Functions")
EPTP_SWITCHING = _section("28.5.7.3", "EPTP Switching")
VIRTUALIZATION_EXCEPTIONS = _section("28.5.8", "Virtualization Exceptions")

# VM Entries
BASIC_VM_ENTRY_CHECKS = _section("29.1", "Basic VM-Entry Checks")
VM_EXECUTION_CONTROL_FIELDS = _section("29.2.1.1", "VM-Execution Control Fields")
VM_EXIT_CONTROL_FIELDS = _section("29.2.1.2", "VM-Exit Control Fields")
VM_ENTRY_CONTROL_FIELDS = _section("29.2.1.3", "VM-Entry Control Fields")
CHECKS_ON_HOST_CONTROL_REGISTERS_MSRS_AND_SSP = _section(
    "29.2.2", "Checks on Host Control Registers, MSRs, and SSP"
)
CHECKS_ON_HOST_SEGMENT_AND_DESCRIPTOR_TABLE_REGISTERS = _section(
    "29.2.3", "Checks on Host Segment and Descriptor-Table Registers"
)
CHECKS_RELATED_TO_ADDRESS_SPACE_SIZE = _section("29.2.4", "Checks Related to Address-Space Size")
CHECKS_ON_GUEST_CONTROL_REGISTERS_DEBUG_REGISTERS_AND_MSRS = _section(
    "29.3.1.1", "Checks on Guest Control Registers, Debug Registers, and MSRs"
)
CHECKS_ON_GUEST_SEGMENT_REGISTERS = _section("29.3.1.2", "Checks on Guest Segment Registers")
CHECKS_ON_GUEST_DESCRIPTOR_TABLE_REGISTERS = _section(
    "29.3.1.3", "Checks on Guest Descriptor-Table Registers"
)
CHECKS_ON_GUEST_RIP_RFLAGS_AND_SSP = _section("29.3.1.4", "Checks on Guest RIP, RFLAGS, and SSP")
CHECKS_ON_GUEST_NON_REGISTER_STATE = _section("29.3.1.5", "Checks on Guest Non-Register State")
CHECKS_ON_GUEST_PAGE_DIRECTORY_POINTER_TABLE_ENTRIES = _section(
    "29.3.1.6", "Checks on Guest Page-Directory-Pointer-Table Entries"
)
LOADING_GUEST_STATE = _section("29.3.2", "Loading Guest State")
LOADING_GUEST_CONTROL_REGISTERS_DEBUG_REGISTERS_AND_MSRS = _section(
    "29.3.2.1", "Loading Guest Control Registers, Debug Registers, and MSRs"
)
LOADING_GUEST_SEGMENT_REGISTERS_AND_DESCRIPTOR_TABLE_REGISTERS = _section(
    "29.3.2.2", "Loading Guest Segment Registers and Descriptor-Table Registers"
)
LOADING_GUEST_RIP_RSP_RFLAGS_AND_SSP = _section(
    "29.3.2.3", "Loading Guest RIP, RSP, RFLAGS, and SSP"
)
LOADING_PAGE_DIRECTORY_POINTER_TABLE_ENTRIES = _section(
    "29.3.2.4", "Loading Page-Directory-Pointer-Table Entries"
)
UPDATING_NON_REGISTER_STATE = _section("29.3.2.5", "Updating Non-Register State")
CLEARING_ADDRESS_RANGE_MONITORING = _section("29.3.3", "Clearing Address-Range Monitoring")
LOADING_MSRS = _section("29.4", "Loading MSRs")
EVENT_INJECTION = _section("29.6", "Event Injection")
INJECTION_OF_PENDING_MTF_VM_EXITS = _section("29.6.2", "Injection of Pending MTF VM Exits")
SPECIAL_FEATURES_OF_VM_ENTRY = _section("29.7", "Special Features of VM Entry")
INTERRUPTIBILITY_STATE = _section("29.7.1", "Interruptibility State")
ACTIVITY_STATE = _section("29.7.2", "Activity State")
DELIVERY_OF_PENDING_DEBUG_EXCEPTIONS_AFTER_VM_ENTRY = _section(
    "29.7.3", "Delivery of Pending Debug Exceptions after VM Entry"
)
INTERRUPT_WINDOW_EXITING_AND_VIRTUAL_INTERRUPT_DELIVERY = _section(
    "29.7.5", "Interrupt-Window Exiting and Virtual-Interrupt Delivery"
)
NMI_WINDOW_EXITING = _section("29.7.6", "NMI-Window Exiting")
VM_EXITS_INDUCED_BY_THE_TPR_THRESHOLD = _section("29.7.7", "VM Exits Induced by the TPR Threshold")
PENDING_MTF_VM_EXITS = _section("29.7.8", "Pending MTF VM Exits")
VM_ENTRY_FAILURES_DURING_OR_AFTER_LOADING_GUEST_STATE = _section(
    "29.8", "VM-Entry Failures During or After Loading Guest State"
)
MACHINE_CHECK_EVENTS_DURING_VM_ENTRY = _section("29.9", "Machine-Check Events During VM Entry")

# VM Exits
ARCHITECTURAL_STATE_BEFORE_A_VM_EXIT = _section("30.1", "Architectural State Before a VM Exit")
RECORDING_VM_EXIT_INFORMATION_AND_UPDATING_VM_ENTRY_CONTROL_FIELDS = _section(
    "30.2", "Recording VM-Exit Information and Updating VM-Entry Control Fields"
)
BASIC_VM_EXIT_INFORMATION = _section("30.2.1", "Basic VM-Exit Information")
INFORMATION_ABOUT_NMI_UNBLOCKING_DUE_TO_IRET = _section(
    "30.2.3", "Information About NMI Unblocking Due to IRET"
)
INFORMATION_FOR_VM_EXITS_DURING_EVENT_DELIVERY = _section(
    "30.2.4", "Information for VM Exits During Event Delivery"
)
SAVING_GUEST_STATE = _section("30.3", "Saving Guest State")
SAVING_CONTROL_REGISTERS_DEBUG_REGISTERS_AND_MSRS = _section(
    "30.3.1", "Saving Control Registers, Debug Registers, and MSRs"
)
SAVING_SEGMENT_REGISTERS_AND_DESCRIPTOR_TABLE_REGISTERS = _section(
    "30.3.2", "Saving Segment Registers and Descriptor-Table Registers"
)
SAVING_RIP_RSP_RFLAGS_AND_SSP = _section("30.3.3", "Saving RIP, RSP, RFLAGS, and SSP")
SAVING_NON_REGISTER_STATE = _section("30.3.4", "Saving Non-Register State")
SAVING_MSRS = _section("30.4", "Saving MSRs")
LOADING_HOST_STATE = _section("30.5", "Loading Host State")
LOADING_HOST_CONTROL_REGISTERS_DEBUG_REGISTERS_AND_MSRS = _section(
    "30.5.1", "Loading Host Control Registers, Debug Registers, and MSRs"
)
LOADING_HOST_SEGMENT_AND_DESCRIPTOR_TABLE_REGISTERS = _section(
    "30.5.2", "Loading Host Segment and Descriptor-Table Registers"
)
LOADING_HOST_RIP_RSP_RFLAGS_AND_SSP = _section("30.5.3", "Loading Host RIP, RSP, RFLAGS, and SSP")
CHECKING_AND_LOADING_HOST_PAGE_DIRECTORY_POINTER_TABLE_ENTRIES = _section(
    "30.5.4", "Checking and Loading Host Page-Directory-Pointer-Table Entries"
)
UPDATING_NON_REGISTER_STATE_ON_VM_EXIT = _section("30.5.5", "Updating Non-Register State")
CLEARING_ADDRESS_RANGE_MONITORING_ON_VM_EXIT = _section(
    "30.5.6", "Clearing Address-Range Monitoring"
)
LOADING_MSRS_ON_VM_EXIT = _section("30.6", "Loading MSRs")
VMX_ABORTS = _section("30.7", "VMX Aborts")

# VMX Support for Address Translation
VIRTUAL_PROCESSOR_IDENTIFIERS_VPIDS = _section("31.1", "Virtual Processor Identifiers (VPIDs)")
THE_EXTENDED_PAGE_TABLE_MECHANISM_EPT = _section("31.3", "The Extended Page Table Mechanism (EPT)")
EPT_TRANSLATION_MECHANISM = _section("31.3.2", "EPT Translation Mechanism")
EPT_MISCONFIGURATIONS = _section("31.3.3.1", "EPT Misconfigurations")
EPT_VIOLATIONS = _section("31.3.3.2", "EPT Violations")
ACCESSED_AND_DIRTY_FLAGS_FOR_EPT = _section("31.3.5", "Accessed and Dirty Flags for EPT")
PAGE_MODIFICATION_LOGGING = _section("31.3.6", "Page-Modification Logging")
EPT_AND_MEMORY_TYPING = _section("31.3.7", "EPT and Memory Typing")
CACHING_TRANSLATION_INFORMATION = _section("31.4", "Caching Translation Information")
OPERATIONS_THAT_INVALIDATE_CACHED_MAPPINGS = _section(
    "31.4.3.1", "Operations that Invalidate Cached Mappings"
)

# APIC Virtualization and Virtual Interrupts
VIRTUALIZED_APIC_REGISTERS = _section("32.1.1", "Virtualized APIC Registers")
TPR_VIRTUALIZATION = _section("32.1.2", "TPR Virtualization")
PPR_VIRTUALIZATION = _section("32.1.3", "PPR Virtualization")
EOI_VIRTUALIZATION = _section("32.1.4", "EOI Virtualization")
EVALUATION_AND_DELIVERY_OF_VIRTUAL_INTERRUPTS = _section(
    "32.2", "Evaluation and Delivery of Virtual Interrupts"
)
VIRTUALIZING_CR8_BASED_TPR_ACCESSES = _section("32.3", "Virtualizing CR8-Based TPR Accesses")
VIRTUALIZING_MEMORY_MAPPED_APIC_ACCESSES = _section(
    "32.4", "Virtualizing Memory-Mapped APIC Accesses"
)
VIRTUALIZING_MSR_BASED_APIC_ACCESSES = _section("32.5", "Virtualizing MSR-Based APIC Accesses")

# VMX Instruction Reference
CONVENTIONS = _section("33.2", "Conventions")
VMX_INSTRUCTIONS = _section("33.3", "VMX Instructions")
VM_INSTRUCTION_ERROR_NUMBERS = _section("33.4", "VM Instruction Error Numbers")

# System Management Mode
RECORDING_VM_EXIT_INFORMATION = _section("34.15.2.3", "Recording VM-Exit Information")
VM_ENTRIES_THAT_RETURN_FROM_SMM = _section("34.15.4", "VM Entries that Return from SMM")
CHECKS_ON_THE_EXECUTIVE_VMCS_POINTER_FIELD = _section(
    "34.15.4.1", "Checks on the Executive-VMCS Pointer Field"
)
CHECKS_ON_VM_EXECUTION_CONTROL_FIELDS = _section(
    "34.15.4.2", "Checks on VM-Execution Control Fields"
)
CHECKS_ON_VM_ENTRY_CONTROL_FIELDS = _section("34.15.4.3", "Checks on VM-Entry Control Fields")
CHECKS_ON_THE_GUEST_STATE_AREA = _section("34.15.4.4", "Checks on the Guest State Area")

# Appendices of volume 3
BASIC_VMX_INFORMATION = _section("A.1", "Basic VMX Information")
RESERVED_CONTROLS_AND_DEFAULT_SETTINGS = _section("A.2", "Reserved Controls and Default Settings")
VM_EXECUTION_CONTROLS = _section("A.3", "VM-Execution Controls")
MISCELLANEOUS_DATA = _section("A.6", "Miscellaneous Data")
VMX_FIXED_BITS_IN_CR0 = _section("A.7", "VMX-Fixed Bits in CR0")
VMX_FIXED_BITS_IN_CR4 = _section("A.8", "VMX-Fixed Bits in CR4")
VMCS_ENUMERATION = _section("A.9", "VMCS Enumeration")
VPID_AND_EPT_CAPABILITIES = _section("A.10", "VPID and EPT Capabilities")
VM_FUNCTIONS_CAPABILITIES = _section("A.11", "VM Functions")
FIELD_ENCODING_IN_VMCS = _section("B", "Field Encoding in VMCS")
VMX_BASIC_EXIT_REASONS = _section("C", "VMX Basic Exit Reasons")
