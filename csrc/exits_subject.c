/* What one exit was about, as a number: the port under I/O, the MSR, the address under EPT. Which of
 * them a reason has, the caller says; here no exit reason is known. */
#include "core.h"

enum { VALUE_BITS = 47, KIND_SHIFT = 48, REGION_SHIFT = 21 };

static uint64_t packed(uint32_t kind, uint64_t value, int known) {
    const uint64_t limit = (UINT64_C(1) << VALUE_BITS) - 1;
    return known ? (uint64_t)kind << KIND_SHIFT | (value & limit) << 1 : 0;
}

/* VM-exit interruption information; 0 if it is not known or not valid. */
static uint64_t interruption(const vtx_exit *exit) {
    uint64_t info = 0;
    if (exit->flags & VTX_EXIT_INTR_INFO)
        info = exit->intr_info;
    else if (exit->flags & VTX_EXIT_OLD_INFO)
        info = exit->info2;
    return info >> 31 & 1 ? info : 0;
}

/* Exit qualification: port in bits 31:16, IN in bit 3; else what kvm_pio tells. */
static uint64_t port(const vtx_exit *exit) {
    if (exit->flags & VTX_EXIT_INFO1)
        return packed(VTX_SUBJECT_PORT,
                      (exit->info1 >> 16 & 0xffff) | (exit->info1 >> 3 & 1) << 16, 1);
    return packed(VTX_SUBJECT_PORT,
                  (exit->detail & 0xffff) | (uint64_t)!(exit->flags & VTX_EXIT_WRITE) << 16,
                  exit->detail_kind == VTX_EVENT_PIO);
}

uint64_t vtx_exit_subject_of(const vtx_exit *exit, uint32_t subject) {
    const int info = (exit->flags & VTX_EXIT_INFO1) != 0;
    const uint32_t kind = exit->detail_kind;
    switch (subject) {
    case VTX_SUBJECT_PORT:
        return port(exit);
    case VTX_SUBJECT_MSR:
        return packed(subject, exit->detail, kind == VTX_EVENT_MSR);
    case VTX_SUBJECT_CR:
        return packed(subject, exit->info1 & 0x3f, info);
    case VTX_SUBJECT_DR:
        return packed(subject, exit->info1 & 0x17, info);
    case VTX_SUBJECT_REGION:
        return packed(subject, exit->detail >> REGION_SHIFT,
                      kind == VTX_EVENT_PAGE_FAULT || kind == VTX_EVENT_MMIO);
    case VTX_SUBJECT_VECTOR:
        return packed(subject, interruption(exit) & 0xff, interruption(exit) != 0);
    case VTX_SUBJECT_EXCEPTION:
        return packed(subject, interruption(exit) & 0x7ff, interruption(exit) != 0);
    case VTX_SUBJECT_LEAF:
        return packed(subject, exit->detail, kind == VTX_EVENT_CPUID);
    case VTX_SUBJECT_APIC:
        return packed(subject, exit->info1 & 0xfff, info);
    case VTX_SUBJECT_EOI:
        return packed(subject, exit->info1 & 0xff, info);
    default:
        return 0;
    }
}
