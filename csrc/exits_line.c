/* One physical line, and the frame that ftrace, trace-cmd, perf and xenalyze put before a payload:
 *
 *   COMM-PID (TGID) [CPU] FLAGS SEC.USEC: event: payload       ftrace, trace-cmd
 *   DATE TIME COMM PID/TID FLAGS [CPU] SEC.USEC: subsys:event: payload      perf script, perf-prof
 *   ]SEC.NSEC MASK dXvY vmexit exit_reason NAME eip ADDRESS    xenalyze --dump-all
 *   CPU0 0x10 TICKS vmexit [...], TICKS (+TICKS) VMEXIT ...    acrntrace, kvmtrace: exits_fields.c
 *
 * COMM may hold blanks and anything else, so the frame is read from [CPU] or from the stamp, both
 * ways, and never from the start of the line. */
#include "exits.h"

#include <string.h>

enum { FRAME_REACH = 256, FRAME_WORDS = 12, LEAST_FRACTION = 6, MOST_SECONDS = 10 };

/* ---- The line ------------------------------------------------------------------------------ */

static const char *skip_quoting(const char *at, const char *end) {
    const char *start = at;
    for (;;) {
        at = skip_blanks(at, end);
        if (at == end || *at != '>')
            return at;
        at++;
        if (at - start > FRAME_REACH)
            return at;
    }
}

int line_at(const char *at, const char *end, int final, line *out) {
    const char *newline = at < end ? memchr(at, '\n', (size_t)(end - at)) : NULL;
    if (!newline && !(final && at < end))
        return 0;
    out->cut = !newline;
    out->next = newline ? newline + 1 : end;
    const char *stop = newline ? newline : end;
    while (stop > at && (is_blank(stop[-1]) || stop[-1] == '\r')) {
        stop--;
        out->cut = 0; /* a blank ends the last word as well as a newline does */
    }
    out->at = skip_quoting(at, stop);
    out->end = stop;
    return 1;
}

/* ---- Its parts ----------------------------------------------------------------------------- */

static int is_flag(char c) {
    static const char flags[256] = {
        ['.'] = 1, ['#'] = 1, ['+'] = 1, ['-'] = 1, ['d'] = 1, ['D'] = 1, ['X'] = 1, ['b'] = 1,
        ['B'] = 1, ['n'] = 1, ['N'] = 1, ['p'] = 1, ['P'] = 1, ['h'] = 1, ['H'] = 1, ['s'] = 1,
        ['S'] = 1, ['z'] = 1, ['Z'] = 1, ['l'] = 1, ['L'] = 1, ['e'] = 1, ['E'] = 1, ['a'] = 1,
        ['0'] = 1, ['1'] = 1, ['2'] = 1, ['3'] = 1, ['4'] = 1, ['5'] = 1, ['6'] = 1, ['7'] = 1,
        ['8'] = 1, ['9'] = 1,
    };
    return flags[(unsigned char)c];
}

/* Interrupt and preemption flags, such as "d..1", "....", ".N.." or "d..2.". */
static int is_flags(const char *at, const char *end) {
    if (end - at < 2 || end - at > 8)
        return 0;
    for (; at < end; at++)
        if (!is_flag(*at))
            return 0;
    return 1;
}

/* The thread in front of `end`: "COMM-PID", "COMM PID", "COMM PID/TID", then perhaps a thread group
 * in parentheses or flags. */
static void read_thread(const char *start, const char *end, frame *out) {
    for (int words = 0; words < 4; words++) {
        while (end > start && is_blank(end[-1]))
            end--;
        if (end == start)
            return;
        if (end[-1] == ')') {
            while (end > start && *--end != '(')
                continue;
            continue;
        }
        const char *number = end;
        uint32_t tid = 0, scale = 1;
        for (; number > start && is_digit(number[-1]) && end - number < 9; scale *= 10)
            tid += (uint32_t)(*--number - '0') * scale;
        const char before = number > start ? number[-1] : 'x';
        if (number < end && (before == '-' || before == '/' || is_blank(before))) {
            out->tid = tid;
            out->stream = tid;
            return;
        }
        const char *word = number;
        while (word > start && !is_blank(word[-1]))
            word--;
        if (!is_flags(word, end))
            return;
        end = word;
    }
}

/* Six digits and a colon at `at`: microseconds, as most tracers print them. 0 if it is not so. */
static int six_digits(const char *at, const char *end, uint64_t *value) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const uint64_t ones = UINT64_C(0x0101010101010101);
    uint64_t text;
    if (end - at < 8 || at[6] != ':')
        return 0;
    memcpy(&text, at, sizeof text);
    text = text << 16 | 0x3030; /* two leading zeros for the two bytes behind */
    if (((text & ones * 0xf0) != ones * 0x30) | (((text + ones * 6) & ones * 0xf0) != ones * 0x30))
        return 0;
    text &= ones * 0x0f;
    text = (text * 10 + (text >> 8)) & UINT64_C(0x00ff00ff00ff00ff);
    text = (text * 100 + (text >> 16)) & UINT64_C(0x0000ffff0000ffff);
    *value = (text * 10000 + (text >> 32)) & UINT64_C(0xffffffff);
    return 1;
#else
    (void)at, (void)end, (void)value;
    return 0;
#endif
}

/* SEC.FRACTION at `at`; returns its end, or NULL. Whole ticks of an unknown clock are no time. */
static const char *read_stamp(const char *at, const char *end, frame *out) {
    uint64_t seconds = 0, fraction = 0;
    const char *digit = at;
    for (; digit < end && is_digit(*digit); digit++)
        seconds = seconds * 10 + (uint64_t)(*digit - '0');
    if (digit == at || digit - at > 20)
        return NULL;
    if (digit == end || *digit != '.') {
        out->stamp_without_unit = 1;
        return digit;
    }
    static const uint32_t scales[] = {1000000000, 100000000, 10000000, 1000000, 100000,
                                      10000,      1000,      100,      10,      1};
    uint32_t digits = 0;
    const char *const first = ++digit;
    if (six_digits(digit, end, &fraction)) {
        digits = 6;
        digit += 6;
    }
    for (; digit < end && is_digit(*digit); digit++)
        if (digits < 9) {
            fraction = fraction * 10 + (uint64_t)(*digit - '0');
            digits++;
        }
    if (digit == first || first - 1 - at > MOST_SECONDS)
        return NULL;
    out->fraction_digits = (uint8_t)digits;
    out->time_ns = seconds * 1000000000u + fraction * scales[digits];
    out->has_time = 1;
    return digit;
}

static int named(const char *at, size_t length, const char *name) {
    return strlen(name) == length && memcmp(at, name, length) == 0;
}

#define USUAL(text, kind)                                                                          \
    if ((size_t)(end - at) >= sizeof(text) - 1 && same(at, text, sizeof(text) - 1)) {              \
        out->event = kind;                                                                         \
        return at + sizeof(text) - 1;                                                              \
    }

/* The events that most lines are, by the text that most tracers print; NULL for any other. */
static const char *usual_event(const char *at, const char *end, frame *out) {
    USUAL("kvm_exit: ", VTX_EVENT_EXIT)
    USUAL("kvm_entry: ", VTX_EVENT_ENTRY)
    USUAL("kvm_page_fault: ", VTX_EVENT_PAGE_FAULT)
    USUAL("kvm_msr: ", VTX_EVENT_MSR)
    USUAL("kvm_pio: ", VTX_EVENT_PIO)
    return NULL;
}

#define EVENT(text, kind)                                                                         \
    if (length == sizeof(text) - 1 && memcmp(at, text, sizeof(text) - 1) == 0)                    \
        return kind;

static enum vtx_exit_event event_named(const char *at, size_t length) {
    if (length < 7 || memcmp(at, "kvm_", 4) != 0)
        return VTX_EVENT_OTHER;
    EVENT("kvm_exit", VTX_EVENT_EXIT)
    EVENT("kvm_entry", VTX_EVENT_ENTRY)
    EVENT("kvm_page_fault", VTX_EVENT_PAGE_FAULT)
    EVENT("kvm_msr", VTX_EVENT_MSR)
    EVENT("kvm_pio", VTX_EVENT_PIO)
    EVENT("kvm_mmio", VTX_EVENT_MMIO)
    EVENT("kvm_inj_virq", VTX_EVENT_INJECT)
    EVENT("kvm_inj_exception", VTX_EVENT_EXCEPTION)
    EVENT("kvm_nested_vmexit", VTX_EVENT_NESTED)
    EVENT("kvm_nested_vmexit_inject", VTX_EVENT_REFLECTED)
    EVENT("kvm_userspace_exit", VTX_EVENT_USERSPACE)
    EVENT("kvm_cpuid", VTX_EVENT_CPUID)
    return VTX_EVENT_OTHER;
}

/* "subsys:event:" or "event:" at `at`, perhaps behind a sample period. */
static void read_event(const char *at, const char *end, frame *out) {
    at = skip_blanks(at, end);
    const char *const usual = usual_event(at, end, out);
    if (usual) {
        out->state = FRAME_EVENT;
        out->payload = skip_blanks(usual, end);
        return;
    }
    const char *after = skip_digits(at, end);
    if (after > at && after < end && is_blank(*after))
        at = skip_blanks(after, end);
    if (at == end || (after > at && after == end)) { /* nothing, or the period alone */
        out->state = FRAME_OPEN;
        return;
    }
    out->state = FRAME_EVENT;
    out->payload = at;
    const char *word_end = skip_word(at, end);
    if (word_end[-1] != ':')
        return; /* function tracers and the like */
    out->payload = skip_blanks(word_end, end);
    const char *name_end = word_end - 1, *name = at;
    if (*at != 'k' || word_end - at < 4 || at[3] != '_') { /* "kvm:kvm_exit:" */
        name = name_end;
        while (name > at && name[-1] != ':')
            name--;
    }
    out->event = event_named(name, (size_t)(name_end - name));
}

/* ---- The frames ---------------------------------------------------------------------------- */

/* Behind "[CPU]": flags, a stamp, an event; each may be missing or on the next line. */
static int read_behind_cpu(const char *at, const char *end, frame *out) {
    at = skip_blanks(at, end);
    const char *word_end = at;
    while (word_end < end && is_flag(*word_end))
        word_end++;
    const ptrdiff_t flags = word_end - at;
    if (flags >= 2 && flags <= 8 && !is_digit(*at) && (word_end == end || is_blank(*word_end)))
        at = skip_blanks(word_end, end);
    if (at == end) {
        out->state = out->tid ? FRAME_OPEN : FRAME_NONE;
        return out->state != FRAME_NONE;
    }
    if (is_digit(*at)) {
        const char *stamp_end = read_stamp(at, end, out);
        if (!stamp_end || stamp_end == end || *stamp_end != ':') {
            out->has_time = out->stamp_without_unit = 0;
            return 0;
        }
        read_event(stamp_end + 1, end, out);
        return 1;
    }
    read_event(at, end, out); /* the stamp has been taken away: only an event that we know counts */
    return out->state == FRAME_EVENT && (out->event != VTX_EVENT_OTHER || out->tid);
}

/* The first line of a thread on a processor is read; the next ones only compared. */
static int read_known(const char *at, const char *end, prefixes *known, frame *out) {
    for (uint32_t i = 0; i < EXITS_PREFIXES; i++) {
        const uint32_t index = (known->last + i) & (EXITS_PREFIXES - 1);
        const prefix *entry = &known->entries[index];
        /* Threads differ near the end of what names them, if anywhere. */
        uint64_t tail;
        if (!entry->length || end - at <= (ptrdiff_t)entry->length)
            continue;
        memcpy(&tail, at + entry->length - sizeof tail, sizeof tail);
        if (tail != entry->tail || memcmp(at, entry->text, entry->length) != 0)
            continue;
        out->tid = entry->tid;
        out->stream = entry->tid;
        out->cpu = entry->cpu;
        known->last = index;
        if (read_behind_cpu(at + entry->length, end, out))
            return 1;
        memset(out, 0, sizeof *out);
        out->cpu = EXITS_NO_CPU;
        return 0;
    }
    return 0;
}

static void keep(const char *at, const char *end, prefixes *known, const frame *out) {
    if (end - at > EXITS_MAX_PREFIX || end - at < (ptrdiff_t)sizeof(uint64_t))
        return;
    known->last = known->oldest++ & (EXITS_PREFIXES - 1);
    prefix *entry = &known->entries[known->last];
    entry->length = (uint32_t)(end - at);
    entry->tid = out->tid;
    entry->cpu = out->cpu;
    memcpy(entry->text, at, entry->length);
    memcpy(&entry->tail, end - sizeof entry->tail, sizeof entry->tail);
}

static int read_around_cpu(const char *at, const char *end, prefixes *known, frame *out) {
    if (read_known(at, end, known, out))
        return 1;
    const char *reach = end - at > FRAME_REACH ? at + FRAME_REACH : end;
    const char *bracket = at, *first = NULL;
    while (bracket < reach && (bracket = memchr(bracket, '[', (size_t)(reach - bracket)))) {
        const char *number = bracket + 1;
        const char *close = skip_digits(number, end);
        first = first ? first : bracket;
        const int apart = bracket == at || is_blank(bracket[-1]);
        if (apart && close > number && close - number < 6 && close < end && *close == ']') {
            uint32_t cpu = 0;
            for (; number < close; number++)
                cpu = cpu * 10 + (uint32_t)(*number - '0');
            out->cpu = (uint16_t)(cpu < EXITS_NO_CPU ? cpu : EXITS_NO_CPU);
            read_thread(at, bracket, out);
            if (read_behind_cpu(close + 1, end, out)) {
                if (bracket == first)
                    keep(at, close + 1, known, out);
                return 1;
            }
            out->cpu = EXITS_NO_CPU;
            out->tid = 0;
            out->stream = 0;
            out->state = FRAME_NONE;
            out->event = VTX_EVENT_OTHER;
        }
        bracket++;
    }
    return 0;
}

/* A stamp somewhere among the first words: perf script without CPU, trace-cmd -l ("COMM-PID
 * 3d..1 SEC.USEC:"). */
static int read_around_stamp(const char *at, const char *end, frame *out) {
    const char *word = at;
    for (int words = 0; words < FRAME_WORDS && word < end; words++) {
        const char *word_end = skip_word(word, end);
        if (is_digit(*word) && word_end[-1] == ':') {
            const char *stamp_end = read_stamp(word, word_end, out);
            if (stamp_end == word_end - 1 && out->fraction_digits >= LEAST_FRACTION) {
                read_thread(at, word, out);
                read_event(word_end, end, out);
                return 1;
            }
            out->has_time = out->stamp_without_unit = out->fraction_digits = 0;
        }
        word = skip_blanks(word_end, end);
    }
    return 0;
}

static int read_domain(const char *at, const char *end, frame *out, uint32_t *vcpu) {
    if (at == end || *at != 'd')
        return 0;
    const char *number = at + 1, *v = skip_digits(number, end);
    const char *last = v < end ? skip_digits(v + 1, end) : v;
    if (v == number || v == end || *v != 'v' || last != end || last == v + 1 || end - at > 12)
        return 0;
    uint32_t domain = 0;
    *vcpu = 0;
    for (; number < v; number++)
        domain = domain * 10 + (uint32_t)(*number - '0');
    for (v++; v < end; v++)
        *vcpu = *vcpu * 10 + (uint32_t)(*v - '0');
    out->domain = domain;
    return 1;
}

/* What is behind the ']' of xenalyze. */
static void read_xen(const char *at, const char *end, frame *out) {
    const char *word = skip_blanks(at, end);
    const char *stamp_end = read_stamp(word, skip_word(word, end), out);
    if (!stamp_end || !out->has_time) {
        out->stamp_without_unit = 0;
        return;
    }
    uint32_t vcpu = 0;
    for (int words = 0; words < 3; words++) {
        word = skip_blanks(stamp_end, end);
        stamp_end = skip_word(word, end);
        if (!read_domain(word, stamp_end, out, &vcpu))
            continue;
        out->tid = out->domain;
        out->stream = (UINT64_C(1) << 63) | (uint64_t)out->domain << 32 | vcpu;
        word = skip_blanks(stamp_end, end);
        stamp_end = skip_word(word, end);
        out->payload = skip_blanks(stamp_end, end);
        out->nested = (uint8_t)named(word, (size_t)(stamp_end - word), "vmexit(n)");
        if (out->nested || named(word, (size_t)(stamp_end - word), "vmexit"))
            out->event = VTX_EVENT_XEN_EXIT;
        else if (named(word, (size_t)(stamp_end - word), "vmentry"))
            out->event = VTX_EVENT_XEN_ENTRY;
        break;
    }
    out->state = FRAME_EVENT;
    if (!out->payload)
        out->payload = end;
}

void frame_read(const char *at, const char *end, prefixes *known, frame *out) {
    memset(out, 0, sizeof *out);
    out->cpu = EXITS_NO_CPU;
    if (at == end)
        return;
    if (*at == ']') {
        read_xen(at + 1, end, out);
        return;
    }
    if (*at == '#' || read_around_cpu(at, end, known, out) || read_around_stamp(at, end, out))
        return;
    memset(out, 0, sizeof *out);
    out->cpu = EXITS_NO_CPU;
    if (*at != 'k') {
        frame_of_tracer(at, end, out);
        return;
    }
    read_event(at, end, out); /* nothing but the event: "kvm_exit: ..." or "kvm:kvm_exit: ..." */
    out->bare = 1;
    if (out->event == VTX_EVENT_OTHER)
        out->state = FRAME_NONE;
}
