/* Fields as "key=value" or "key = value": what trace-cmd and perf print of KVM's events when no plugin
 * and no print format is at hand, and what acrntrace and the old kvmtrace always print:
 *
 *   exit_reason=48 guest_rip=0xffffffff81000000 isa=1 info1=386 info2=0 vcpu_id=0
 *   CPU0 0x0000000000000010 TICKS vmexit [exit reason = 0x00000030, rIP = 0xffffffff81000000]
 *   TICKS (+ TICKS)  VMEXIT  vcpu = 0x00000000  pid = 0x00001234 [ exitcode = 0x00000030, rip = 0x.. ]
 */
#include "exits_words.h"

#include <string.h>

enum { REACH = 256, MOST_WORDS = 8 };

/* ---- Frames ---------------------------------------------------------------------------------- */

static const char *find_text(const char *at, const char *end, const char *text) {
    const size_t length = strlen(text);
    for (; (size_t)(end - at) >= length; at++)
        if (memcmp(at, text, length) == 0)
            return at;
    return NULL;
}

void frame_of_tracer(const char *at, const char *end, frame *out) {
    const char *const reach = end - at > REACH ? at + REACH : end;
    cursor in = {at, reach, 0};
    word w;
    const int acrn = reach - at > 3 && memcmp(at, "CPU", 3) == 0 && is_digit(at[3]);
    if (!acrn && !is_digit(*at))
        return; /* both begin with the processor or the ticks: no prose does */
    for (int words = 0; words < MOST_WORDS && next_word(&in, &w); words++) {
        const int exit = is(&w, "VMEXIT") || is(&w, "vmexit");
        if (!exit && !is(&w, "VMENTRY") && !is(&w, "VMENTER") && !is(&w, "vmenter"))
            continue;
        if (exit ? !find_text(w.end, reach, "exit") : !acrn && !find_text(w.end, reach, "vcpu ="))
            return;
        out->state = FRAME_EVENT;
        out->event = exit ? VTX_EVENT_EXIT : VTX_EVENT_ENTRY;
        out->payload = skip_blanks(w.end, end);
        out->stamp_without_unit = 1;
        if (acrn) {
            uint32_t cpu = 0;
            for (at += 3; is_digit(*at) && cpu < EXITS_NO_CPU; at++)
                cpu = cpu * 10 + (uint32_t)(*at - '0');
            out->cpu = (uint16_t)(cpu < EXITS_NO_CPU ? cpu : EXITS_NO_CPU);
        }
        return;
    }
}

/* ---- Fields ---------------------------------------------------------------------------------- */

static int in_word(char c) { return in_name[(unsigned char)c]; }

/* The next name, behind blanks, brackets and commas. */
static int next_name(cursor *in, word *out) {
    while (in->at < in->end && !in_word(*in->at) && *in->at != '=')
        in->at++;
    out->at = in->at;
    while (in->at < in->end && in_word(*in->at))
        in->at++;
    out->end = in->at;
    out->last_of_cut_text = in->cut && in->at == in->end;
    return out->at < out->end;
}

/* The next pair. "exit reason" is a key of two words; any other name that no '=' follows is the end. */
static int next_field(cursor *in, word *key, word *value) {
    while (next_name(in, key)) {
        const char *equals = skip_blanks(in->at, in->end);
        if (equals == in->end || *equals != '=') {
            if (!is(key, "exit"))
                return 0;
            continue;
        }
        in->at = skip_blanks(equals + 1, in->end);
        if (in->at < in->end && *in->at == '-')
            in->at++;
        return next_name(in, value);
    }
    return 0;
}

/* Tools print narrow fields in decimal and addresses in hexadecimal with 0x, or without it: a letter
 * tells then. */
static int number_of(const word *w, uint64_t *value) {
    const char *at = w->at;
    *value = 0;
    if (w->last_of_cut_text)
        return 0;
    if (has_prefix(at, w->end))
        return w->end - at <= 18 && hex_digits(at + 2, w->end, value) == w->end;
    if (skip_digits(at, w->end) < w->end)
        return w->end - at <= 16 && hex_digits(at, w->end, value) == w->end;
    for (; at < w->end; at++)
        *value = *value * 10 + (uint64_t)(*at - '0');
    return w->end - w->at <= 20;
}

/* kvmtrace prints an address in two halves: "rip = 0xffffffff 81000000". */
static void take_low_half(cursor *in, word *text, uint64_t *value) {
    cursor ahead = *in;
    word low;
    uint64_t number = 0;
    if (!next_word(&ahead, &low) || low.end - low.at != 8 || low.last_of_cut_text ||
        hex_digits(low.at, low.end, &number) != low.end)
        return;
    *value = *value << 32 | number;
    text->end = in->at = low.end;
}

static void store_exit(payload *out, const word *key, const word *text, uint64_t value) {
    if (is(key, "exit_reason") || is(key, "exitcode") || is(key, "reason") ||
        is(key, "exit_code")) {
        if (out->has & HAS_REASON || !is_name(text))
            return;
        out->name = text->at;
        out->name_length = (uint32_t)(text->end - text->at);
        out->has |= HAS_REASON;
    } else if (is(key, "isa") && value == 2) { /* KVM_ISA_SVM */
        out->name = key->at;
        out->name_length = (uint32_t)(text->end - key->at);
        out->has |= HAS_REASON;
    } else if (is(key, "guest_rip") || is(key, "rip") || is(key, "rIP")) {
        out->rip = value;
        out->flags |= VTX_EXIT_RIP;
    } else if (is(key, "info1")) {
        out->info1 = value;
        out->flags |= VTX_EXIT_INFO1;
    } else if (is(key, "info2")) {
        out->info2 = value;
        out->flags |= VTX_EXIT_INFO2;
    } else if (is(key, "intr_info")) {
        out->intr_info = (uint32_t)value;
        out->flags |= VTX_EXIT_INTR_INFO;
    } else if (is(key, "error_code")) {
        out->error_code = (uint32_t)value;
        out->flags |= VTX_EXIT_ERROR_CODE;
    }
}

static void store_detail(enum vtx_exit_event event, payload *out, const word *key,
                         uint64_t value) {
    const int writes = event == VTX_EVENT_MMIO ? is(key, "type") && value == 2
                                               : (is(key, "write") || is(key, "rw")) && value;
    if (is(key, "fault_address") || is(key, "ecx") || is(key, "port") || is(key, "gpa") ||
        is(key, "function")) {
        out->detail = value;
        out->has |= HAS_SUBJECT;
    } else if (is(key, "size") || is(key, "len")) {
        out->detail_size = (uint8_t)value;
    } else if (is(key, "error_code") || is(key, "data") || is(key, "val")) {
        out->value = value;
    } else if (is(key, "vec") || is(key, "irq")) {
        out->vector = (uint32_t)value;
        out->has |= HAS_VECTOR;
    } else if (is(key, "exception") && value) {
        out->flags |= VTX_EXIT_FAULTED;
    } else if (writes) {
        out->flags |= VTX_EXIT_WRITE;
    }
}

int read_fields(enum vtx_exit_event event, const char *at, const char *end, int cut,
                payload *out) {
    cursor in = {at, end, cut};
    word key, text;
    uint64_t value = 0;
    const char *const first_end = skip_word(at, end);
    const int glued = memchr(at, '=', (size_t)(first_end - at)) != NULL;
    if (event >= VTX_EVENT_XEN_EXIT || at == end ||
        !(glued || *at == '[' || find_text(at, end - at > 7 ? at + 7 : end, "vcpu =")))
        return 0;
    const int exits =
        event == VTX_EVENT_EXIT || event == VTX_EVENT_NESTED || event == VTX_EVENT_REFLECTED;
    while (next_field(&in, &key, &text)) {
        const int known = number_of(&text, &value);
        if (known && (is(&key, "rip") || is(&key, "virt")))
            take_low_half(&in, &text, &value);
        out->understood = in.at;
        if (in.at < end && (*in.at == ',' || *in.at == ']'))
            out->understood++;
        if (!known)
            continue;
        if (is(&key, "vcpu_id") || is(&key, "vcpu")) {
            out->vcpu = (uint32_t)value;
            out->has |= event == VTX_EVENT_ENTRY ? HAS_VCPU | HAS_SUBJECT : HAS_VCPU;
        } else if (exits || event == VTX_EVENT_USERSPACE) {
            store_exit(out, &key, &text, value);
        } else {
            store_detail(event, out, &key, value);
        }
    }
    const char *const rest = skip_blanks(out->understood, end);
    if (rest + 1 == end && *rest == ']')
        out->understood = end;
    const int empty = exits && !(out->has & HAS_REASON);
    out->state = out->understood > at && !empty ? PAYLOAD_COMPLETE : PAYLOAD_BAD;
    return 1;
}
