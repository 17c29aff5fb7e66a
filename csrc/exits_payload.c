/* The words behind an event's name. Kernels and tools have printed each event in several ways; a
 * payload is therefore read as keys and values in any order, and tells how far it was understood:
 * that decides whether the next line, when a mailer broke this one, belongs to it. */
#include "exits_words.h"

#include <string.h>

int take(cursor *in, payload *out, enum base base, uint64_t *value, int *found) {
    const char *at = skip_blanks(in->at, in->end);
    *found = 0;
    *value = 0;
    if (at == in->end) {
        out->state = PAYLOAD_PARTIAL;
        out->understood = in->at = in->end;
        return 0;
    }
    if (base == HEX && has_prefix(at, in->end))
        at += 2;
    const char *const first = at;
    if (base == HEX)
        at = hex_digits(at, in->end, value);
    else
        for (; at < in->end && is_digit(*at); at++)
            *value = *value * 10 + (uint64_t)(*at - '0');
    const int last = at == in->end;
    const int ends = last || is_blank(*at) || *at == ',' || *at == '[' || *at == ')';
    if (at == first || at - first > 16 || !ends) {
        out->state = PAYLOAD_PARTIAL;
        in->at = skip_word(at, in->end);
        return 0;
    }
    *found = !(last && in->cut);
    out->understood = in->at = last || is_blank(*at) ? at : skip_word(at, in->end);
    return 1;
}

/* ---- The other events ------------------------------------------------------------------------ */

/* "vcpu N", ", rip 0x..", "[immediate exit]", "inj 0x..", "intr_info 0x.. error_code 0x..". */
static void read_entry(cursor *in, payload *out) {
    word w;
    uint64_t value = 0;
    int found;
    if (!next_word(in, &w))
        return;
    out->understood = w.end;
    if (!is(&w, "vcpu"))
        return;
    out->state = PAYLOAD_PARTIAL;
    if (!take(in, out, DECIMAL, &value, &found))
        return;
    if (found) {
        out->vcpu = (uint32_t)value;
        out->has |= HAS_VCPU;
    }
    out->has |= HAS_SUBJECT;
    out->state = PAYLOAD_COMPLETE;
    while (next_word(in, &w)) {
        if (is(&w, "[immediate") || is(&w, "exit]")) {
            out->understood = w.end;
            continue;
        }
        if (!is(&w, "rip") && !is(&w, "inj") && !is(&w, "inj_error_code") &&
            !is(&w, "intr_info") && !is(&w, "error_code") && !is(&w, "requests"))
            return;
        if (!take(in, out, HEX, &value, &found))
            return;
    }
}

static void read_page_fault(cursor *in, payload *out) {
    word key;
    uint64_t value = 0;
    int found;
    while (next_word(in, &key)) {
        if (is(&key, "vcpu") ? !take(in, out, DECIMAL, &value, &found)
                             : !take(in, out, HEX, &value, &found))
            return;
        if (is(&key, "address")) {
            if (found) {
                out->detail = value;
                out->has |= HAS_SUBJECT;
            }
            out->state = PAYLOAD_PARTIAL;
        } else if (is(&key, "error_code")) {
            if (found)
                out->value = value;
            out->state = PAYLOAD_COMPLETE;
        } else if (!is(&key, "vcpu") && !is(&key, "rip")) {
            return;
        }
    }
}

/* "msr_read ECX = 0xDATA", perhaps "(#GP)". */
static void read_msr(cursor *in, payload *out) {
    word w;
    uint64_t value = 0;
    int found;
    if (!next_word(in, &w))
        return;
    out->understood = w.end;
    if (is(&w, "msr_write"))
        out->flags |= VTX_EXIT_WRITE;
    else if (!is(&w, "msr_read"))
        return;
    out->state = PAYLOAD_PARTIAL;
    if (!take(in, out, HEX, &value, &found) || !found)
        return;
    out->detail = value;
    if (!next_word(in, &w) || !is(&w, "="))
        return;
    out->understood = w.end;
    out->has |= HAS_SUBJECT;
    if (!take(in, out, HEX, &value, &found))
        return;
    if (found)
        out->value = value;
    out->state = PAYLOAD_COMPLETE;
    if (next_word(in, &w) && is(&w, "(#GP)")) {
        out->flags |= VTX_EXIT_FAULTED;
        out->understood = w.end;
    }
}

/* "pio_write at 0x70 size 1 count 1 val 0x8f", perhaps "(...)". */
static void read_pio(cursor *in, payload *out) {
    word key;
    uint64_t value = 0;
    int found;
    if (!next_word(in, &key))
        return;
    out->understood = key.end;
    if (is(&key, "pio_write"))
        out->flags |= VTX_EXIT_WRITE;
    else if (!is(&key, "pio_read"))
        return;
    out->state = PAYLOAD_PARTIAL;
    while (next_word(in, &key)) {
        if (is(&key, "(...)")) {
            out->understood = key.end;
            continue;
        }
        const int counted = is(&key, "size") || is(&key, "count");
        if (!counted && !is(&key, "at") && !is(&key, "val"))
            return;
        if (!take(in, out, counted ? DECIMAL : HEX, &value, &found))
            return;
        if (found && is(&key, "at")) {
            out->detail = value;
            out->has |= HAS_SUBJECT;
        } else if (found && is(&key, "size")) {
            out->detail_size = (uint8_t)value;
        } else if (found && is(&key, "val")) {
            out->value = value;
        }
        if (is(&key, "count"))
            out->state = PAYLOAD_COMPLETE;
    }
}

/* "mmio unsatisfied-read len 4 gpa 0xfee00000 val 0x0". */
static void read_mmio(cursor *in, payload *out) {
    word key;
    uint64_t value = 0;
    int found;
    if (!next_word(in, &key) || !is(&key, "mmio"))
        return;
    out->understood = key.end;
    out->state = PAYLOAD_PARTIAL;
    if (!next_word(in, &key))
        return;
    if (is(&key, "write"))
        out->flags |= VTX_EXIT_WRITE;
    else if (!is(&key, "read") && !is(&key, "unsatisfied-read"))
        return;
    out->understood = key.end;
    while (next_word(in, &key)) {
        if (!is(&key, "len") && !is(&key, "gpa") && !is(&key, "val"))
            return;
        if (!take(in, out, is(&key, "len") ? DECIMAL : HEX, &value, &found))
            return;
        if (found && is(&key, "gpa")) {
            out->detail = value;
            out->has |= HAS_SUBJECT;
        } else if (found && is(&key, "len")) {
            out->detail_size = (uint8_t)value;
        } else if (found) {
            out->value = value;
        }
        if (is(&key, "val"))
            out->state = PAYLOAD_COMPLETE;
    }
}

/* "irq 48", "IRQ 0x30", "IRQ 0x30 [reinjected]", "Soft/INTn 0x80". */
static void read_injection(cursor *in, payload *out) {
    word w;
    uint64_t value = 0;
    int found;
    if (!next_word(in, &w))
        return;
    out->understood = w.end;
    const int old = is(&w, "irq");
    if (!old && !is(&w, "IRQ") && !is(&w, "Soft/INTn"))
        return;
    out->state = PAYLOAD_PARTIAL;
    if (!take(in, out, old ? DECIMAL : HEX, &value, &found))
        return;
    if (found) {
        out->vector = (uint32_t)value;
        out->has |= HAS_VECTOR;
    }
    out->state = PAYLOAD_COMPLETE;
    if (next_word(in, &w) && is(&w, "[reinjected]"))
        out->understood = w.end;
}

/* "#PF (0x3)", "#DB [reinjected]". */
static void read_exception(cursor *in, payload *out) {
    word w;
    if (!next_word(in, &w) || *w.at != '#')
        return;
    out->state = PAYLOAD_COMPLETE;
    out->understood = w.end;
    while (next_word(in, &w) && (*w.at == '(' || *w.at == '['))
        out->understood = w.end;
}

/* "reason KVM_EXIT_IO (2)", "reason restart (4)", "reason 0x1d (29)". */
static void read_userspace(cursor *in, payload *out) {
    word w;
    if (!next_word(in, &w) || !is(&w, "reason"))
        return;
    out->understood = w.end;
    out->state = PAYLOAD_PARTIAL;
    if (!next_word(in, &w) || !is_name(&w) || w.last_of_cut_text)
        return;
    out->name = w.at;
    out->name_length = (uint32_t)(w.end - w.at);
    out->has |= HAS_REASON;
    out->understood = w.end;
    if (next_word(in, &w) && *w.at == '(') {
        out->understood = w.end;
        out->state = PAYLOAD_COMPLETE;
    }
}

/* "func 16 idx 0 rax ..." or "func 16 rax ...": all hexadecimal. */
static void read_cpuid(cursor *in, payload *out) {
    word key;
    uint64_t value = 0;
    int found;
    while (next_word(in, &key)) {
        if (!is(&key, "func") && !is(&key, "idx") && !is(&key, "rax") && !is(&key, "rbx") &&
            !is(&key, "rcx") && !is(&key, "rdx")) {
            if (is(&key, "cached") || is(&key, "found") || is(&key, "not"))
                out->understood = in->end;
            break;
        }
        if (!take(in, out, HEX, &value, &found))
            break;
        if (found && is(&key, "func")) {
            out->detail = value;
            out->has |= HAS_SUBJECT;
        }
    }
    out->state = out->has & HAS_SUBJECT ? PAYLOAD_COMPLETE : PAYLOAD_BAD;
}

void payload_read(enum vtx_exit_event event, const char *at, const char *end, int cut,
                  payload *out) {
    cursor in = {at, end, cut};
    memset(out, 0, sizeof *out);
    if (!cut && read_usual(event, at, end, out))
        return;
    memset(out, 0, sizeof *out);
    out->understood = at;
    if (read_fields(event, at, end, cut, out))
        return;
    switch (event) {
    case VTX_EVENT_EXIT:
    case VTX_EVENT_NESTED:
    case VTX_EVENT_REFLECTED:
    case VTX_EVENT_XEN_EXIT:
        read_exit(&in, out);
        break;
    case VTX_EVENT_ENTRY:
        read_entry(&in, out);
        break;
    case VTX_EVENT_PAGE_FAULT:
        read_page_fault(&in, out);
        break;
    case VTX_EVENT_MSR:
        read_msr(&in, out);
        break;
    case VTX_EVENT_PIO:
        read_pio(&in, out);
        break;
    case VTX_EVENT_MMIO:
        read_mmio(&in, out);
        break;
    case VTX_EVENT_INJECT:
        read_injection(&in, out);
        break;
    case VTX_EVENT_EXCEPTION:
        read_exception(&in, out);
        break;
    case VTX_EVENT_USERSPACE:
        read_userspace(&in, out);
        break;
    case VTX_EVENT_CPUID:
        read_cpuid(&in, out);
        break;
    default: /* other events, and xenalyze's vmentry, say all we need by their names */
        out->understood = end;
        out->state = PAYLOAD_COMPLETE;
        break;
    }
}
