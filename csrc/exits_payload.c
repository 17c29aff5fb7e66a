/* The words behind an event's name. Kernels and tools have printed each event in several ways; a
 * payload is therefore read as keys and values in any order, and tells how far it was understood:
 * that decides whether the next line, when a mailer broke this one, belongs to it. */
#include "exits.h"

#include <string.h>

typedef struct {
    const char *at, *end;
    int last_of_cut_text;
} word;

/* ---- Words and numbers --------------------------------------------------------------------- */

static int next_word(cursor *in, word *out) {
    out->at = skip_blanks(in->at, in->end);
    out->end = skip_word(out->at, in->end);
    out->last_of_cut_text = in->cut && out->end == in->end;
    in->at = out->end;
    return out->at < out->end;
}

/* Whether a word is a literal: its length is compared first, and both are known to the compiler. */
#define is(w, text)                                                                               \
    ((size_t)((w)->end - (w)->at) == sizeof(text) - 1 &&                                          \
     memcmp((w)->at, text, sizeof(text) - 1) == 0)

static int has_prefix(const char *at, const char *end) {
    return end - at > 2 && at[0] == '0' && (at[1] | 32) == 'x';
}

#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Eight lower-case hexadecimal digits at once: kernels pad their numbers to 16. 0 if they are not
 * all digits. A letter has bit 6 set, and its value is the low half plus 9. */
static int eight_digits(const char *at, uint64_t *value) {
    uint64_t text;
    memcpy(&text, at, sizeof text);
    if (text == EACH('0')) { /* most of what is padded */
        *value <<= 32;
        return 1;
    }
    const uint64_t letter = text >> 6 & EACH(1);
    uint64_t digits = (text & EACH(0x0f)) + letter * 9;
    if (digits + EACH(0x30) + letter * 0x27 != text || digits & EACH(0xf0) ||
        ((digits + EACH(6)) & EACH(0x10)) != letter << 4)
        return 0;
    digits = __builtin_bswap64(digits);
    digits = (digits | digits >> 4) & UINT64_C(0x00ff00ff00ff00ff);
    digits = (digits | digits >> 8) & UINT64_C(0x0000ffff0000ffff);
    *value = *value << 32 | ((digits | digits >> 16) & UINT64_C(0xffffffff));
    return 1;
}
#else
static int eight_digits(const char *at, uint64_t *value) {
    (void)at, (void)value;
    return 0;
}
#endif

static inline const char *hex_digits(const char *at, const char *end, uint64_t *value) {
    while (end - at >= 8 && at[7] > ' ' && eight_digits(at, value))
        at += 8;
    for (; at < end; at++) {
        const unsigned digit = (unsigned)(unsigned char)*at - '0';
        const unsigned letter = ((unsigned)(unsigned char)*at | 32) - 'a';
        if (digit < 10)
            *value = *value << 4 | digit;
        else if (letter < 6)
            *value = *value << 4 | (letter + 10);
        else
            break;
    }
    return at;
}

/* The value behind a key: hexadecimal with or without 0x, or decimal. A comma or
 * "[immediate exit]" may be glued to it. Returns 0 if reading must stop: none follows, or it is no
 * number. Without *found the number is there, but the text was cut behind its last digit. */
enum base { HEX, DECIMAL };

static int take(cursor *in, payload *out, enum base base, uint64_t *value, int *found) {
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

/* Whether a word is a hexadecimal number with 0x. */
static int is_number(const word *w) {
    uint64_t value = 0;
    return has_prefix(w->at, w->end) && hex_digits(w->at + 2, w->end, &value) == w->end;
}

/* ---- kvm_exit, kvm_nested_vmexit, kvm_nested_vmexit_inject, xenalyze's vmexit ----------------- */

static const char in_name[256] = {
    ['0'] = 1, ['1'] = 1, ['2'] = 1, ['3'] = 1, ['4'] = 1, ['5'] = 1, ['6'] = 1, ['7'] = 1,
    ['8'] = 1, ['9'] = 1, ['A'] = 1, ['B'] = 1, ['C'] = 1, ['D'] = 1, ['E'] = 1, ['F'] = 1,
    ['G'] = 1, ['H'] = 1, ['I'] = 1, ['J'] = 1, ['K'] = 1, ['L'] = 1, ['M'] = 1, ['N'] = 1,
    ['O'] = 1, ['P'] = 1, ['Q'] = 1, ['R'] = 1, ['S'] = 1, ['T'] = 1, ['U'] = 1, ['V'] = 1,
    ['W'] = 1, ['X'] = 1, ['Y'] = 1, ['Z'] = 1, ['_'] = 1, ['a'] = 1, ['b'] = 1, ['c'] = 1,
    ['d'] = 1, ['e'] = 1, ['f'] = 1, ['g'] = 1, ['h'] = 1, ['i'] = 1, ['j'] = 1, ['k'] = 1,
    ['l'] = 1, ['m'] = 1, ['n'] = 1, ['o'] = 1, ['p'] = 1, ['q'] = 1, ['r'] = 1, ['s'] = 1,
    ['t'] = 1, ['u'] = 1, ['v'] = 1, ['w'] = 1, ['x'] = 1, ['y'] = 1, ['z'] = 1,
};

static int is_name(const word *w) {
    for (const char *at = w->at; at < w->end; at++)
        if (!in_name[(unsigned char)*at])
            return 0;
    return w->end > w->at && w->end - w->at < EXITS_MAX_NAME - 16;
}

/* NAME, 0xNN, or UNKNOWN (N). */
static int take_reason(cursor *in, payload *out) {
    word w;
    if (!next_word(in, &w)) {
        out->understood = in->end;
        return 0;
    }
    if (!is_name(&w) || w.last_of_cut_text)
        return 0;
    out->name = w.at;
    out->name_length = (uint32_t)(w.end - w.at);
    out->understood = w.end;
    const char *number = skip_blanks(in->at, in->end);
    if (number < in->end && *number == '(') {
        number += number + 1 < in->end && number[1] == '-' ? 2 : 1;
        const char *close = skip_digits(number, in->end);
        if (close == number || close - number > 18 || close == in->end || *close != ')')
            return 0; /* cut inside the number: which reason it was is lost */
        out->name_length = (uint32_t)(close + 1 - w.at);
        out->understood = in->at = close + 1;
    } else if (is(&w, "UNKNOWN") && number == in->end) {
        out->state = PAYLOAD_PARTIAL; /* its number may be on the next line */
    }
    out->has |= HAS_REASON;
    return 1;
}

static uint32_t exit_key(const word *key) {
    switch (key->end - key->at) {
    case 3:
        return is(key, "rip") || is(key, "eip") ? VTX_EXIT_RIP : 0;
    case 4:
        return is(key, "intr") ? VTX_EXIT_INTR_INFO : 0;
    case 5:
        return is(key, "info1") ? VTX_EXIT_INFO1 : is(key, "info2") ? VTX_EXIT_INFO2 : 0;
    case 7:
        return is(key, "ext_int") ? VTX_EXIT_INTR_INFO : 0;
    case 8:
        return is(key, "ext_inf1")   ? VTX_EXIT_INFO1
               : is(key, "ext_inf2") ? VTX_EXIT_INFO2
               : is(key, "int_info") ? VTX_EXIT_INTR_INFO
                                     : 0;
    case 9:
        return is(key, "intr_info") ? VTX_EXIT_INTR_INFO : 0;
    case 10:
        return is(key, "error_code") ? VTX_EXIT_ERROR_CODE : 0;
    case 11:
        return is(key, "ext_int_err") ? VTX_EXIT_ERROR_CODE : 0;
    case 12:
        return is(key, "int_info_err") ? VTX_EXIT_ERROR_CODE : 0;
    default:
        return 0;
    }
}

static void store(payload *out, uint32_t flag, uint64_t value) {
    out->flags |= flag;
    switch (flag) {
    case VTX_EXIT_RIP:
        out->rip = value;
        break;
    case VTX_EXIT_INFO1:
        out->info1 = value;
        break;
    case VTX_EXIT_INFO2:
        out->info2 = value;
        break;
    case VTX_EXIT_INTR_INFO:
        out->intr_info = (uint32_t)value;
        break;
    default:
        out->error_code = (uint32_t)value;
        break;
    }
}

/* "info A B" of kernels up to 5.8 and of trace-cmd's plugin, or a single "info A". */
static int take_info_pair(cursor *in, payload *out) {
    uint64_t value = 0;
    int found;
    if (!take(in, out, HEX, &value, &found))
        return 0;
    if (found)
        store(out, VTX_EXIT_INFO1, value);
    if (!take(in, out, HEX, &value, &found))
        return 0;
    if (found) {
        store(out, VTX_EXIT_INFO2, value);
        out->flags |= VTX_EXIT_OLD_INFO;
    }
    return 1;
}

/* A word that is no key: a flag of the exit reason, the symbol that rip lies in, or the first half
 * of a pair that some later kernel prints. Returns 0 if it is none of them. */
static int pass(cursor *in, payload *out, const word *w) {
    if (is(w, "FAILED_VMENTRY")) {
        out->flags |= VTX_EXIT_FAILED;
    } else if (*w->at == '[') {
        const char *close = memchr(w->at, ']', (size_t)(in->end - w->at));
        if (!close)
            return 0;
        in->at = close + 1;
    } else if (!is_number(w)) {
        cursor ahead = *in;
        word number;
        if (!next_word(&ahead, &number) || !is_number(&number))
            return 0;
        *in = ahead;
    }
    out->understood = in->at;
    return 1;
}

/* libtraceevent prefixes a payload that its plugin could not read with complaints; the kernel's
 * own text follows them. */
static void skip_complaints(cursor *in) {
    static const char complaint[] = "CAN";
    in->at = skip_blanks(in->at, in->end);
    if (in->end - in->at < 4 || memcmp(in->at, complaint, 3) != 0)
        return;
    const char *last = in->at;
    for (const char *at = in->at; at < in->end; at++)
        if (*at == '>')
            last = at + 1;
    in->at = last;
}

static int take_key(cursor *in, payload *out, word *key) {
    uint64_t value = 0;
    int found;
    if (key->end[-1] == ':')
        key->end--;
    if (is(key, "reason") || is(key, "exit_reason"))
        return !(out->has & HAS_REASON) && take_reason(in, out);
    if (is(key, "info"))
        return !(out->flags & VTX_EXIT_INFO1) && take_info_pair(in, out);
    if (is(key, "vcpu")) {
        if (out->has & HAS_VCPU)
            return 0;
        const int more = take(in, out, DECIMAL, &value, &found);
        if (found) {
            out->vcpu = (uint32_t)value;
            out->has |= HAS_VCPU;
        }
        return more;
    }
    const uint32_t flag = exit_key(key);
    if (!flag)
        return pass(in, out, key);
    if (out->flags & flag)
        return 0; /* said twice: the second is not this event's */
    const int more = take(in, out, HEX, &value, &found);
    if (found)
        store(out, flag, value);
    return more;
}

/* Step over a literal, or give up the short way. */
#define EXPECT(text)                                                                               \
    if ((size_t)(end - at) < sizeof(text) - 1 || !same(at, text, sizeof(text) - 1))                \
        return 0;                                                                                  \
    at += sizeof(text) - 1

#define EXPECT_HEX(text, where)                                                                    \
    EXPECT(text);                                                                                  \
    from = at;                                                                                     \
    number = 0;                                                                                    \
    at = hex_digits(at, end, &number);                                                             \
    if (at == from || at - from > 16)                                                              \
        return 0;                                                                                  \
    (where) = number

/* What kernels from 5.10 on print behind rip: every word has its place. */
static int read_fixed_tail(const char *at, const char *end, payload *out) {
    uint64_t intr_info = 0, error_code = 0;
    if (end - at != 93 || !same(at, " info1 0x", 9) || !same(at + 25, " info2 0x", 9) ||
        !same(at + 50, " intr_info 0x", 13) || !same(at + 71, " error_code 0x", 14))
        return 0;
    if (!eight_digits(at + 9, &out->info1) || !eight_digits(at + 17, &out->info1) ||
        !eight_digits(at + 34, &out->info2) || !eight_digits(at + 42, &out->info2) ||
        !eight_digits(at + 63, &intr_info) || !eight_digits(at + 85, &error_code)) {
        out->info1 = out->info2 = 0;
        return 0;
    }
    out->intr_info = (uint32_t)intr_info;
    out->error_code = (uint32_t)error_code;
    return 1;
}

/* The short way: exactly the words that kernels from 5.10 on, or up to 5.8, print. Returns 0, and
 * leaves everything to the long way, at the first byte that differs. */
static int read_usual_exit(const char *at, const char *end, payload *out) {
    const char *from;
    uint64_t number;
    if (at < end && *at == 'v') {
        EXPECT("vcpu ");
        from = at;
        for (; at < end && is_digit(*at); at++)
            out->vcpu = out->vcpu * 10 + (uint32_t)(*at - '0');
        if (at == from || at - from > 9)
            return 0;
        EXPECT(" ");
        out->has |= HAS_VCPU;
    }
    EXPECT("reason ");
    from = at;
    while (at < end && in_name[(unsigned char)*at])
        at++;
    if (at == from || at - from >= EXITS_MAX_NAME - 16)
        return 0;
    out->name = from;
    out->name_length = (uint32_t)(at - from);
    out->has |= HAS_REASON;
    EXPECT_HEX(" rip 0x", out->rip);
    out->flags = VTX_EXIT_RIP | VTX_EXIT_INFO1 | VTX_EXIT_INFO2;
    if (out->has & HAS_VCPU && read_fixed_tail(at, end, out)) {
        out->flags |= VTX_EXIT_INTR_INFO | VTX_EXIT_ERROR_CODE;
        at = end;
    } else if (out->has & HAS_VCPU) {
        EXPECT_HEX(" info1 0x", out->info1);
        EXPECT_HEX(" info2 0x", out->info2);
        EXPECT_HEX(" intr_info 0x", number);
        out->intr_info = (uint32_t)number;
        EXPECT_HEX(" error_code 0x", number);
        out->error_code = (uint32_t)number;
        out->flags |= VTX_EXIT_INTR_INFO | VTX_EXIT_ERROR_CODE;
    } else {
        EXPECT_HEX(" info ", out->info1);
        EXPECT_HEX(" ", out->info2);
        out->flags |= VTX_EXIT_OLD_INFO;
    }
    out->understood = at;
    out->state = PAYLOAD_COMPLETE;
    return at == end;
}

/* The same for "vcpu N" and "vcpu N, rip 0x..". */
static int read_usual_entry(const char *at, const char *end, payload *out) {
    const char *from;
    EXPECT("vcpu ");
    from = at;
    for (; at < end && is_digit(*at); at++)
        out->vcpu = out->vcpu * 10 + (uint32_t)(*at - '0');
    if (at == from || at - from > 9)
        return 0;
    if (at < end) {
        EXPECT(", rip 0x"); /* nobody needs it; behind it may stand nothing */
        from = at;
        at = skip_word(at, end);
        if (at == from || at[-1] == ']')
            return 0;
    }
    out->has = HAS_VCPU | HAS_SUBJECT;
    out->understood = at;
    out->state = PAYLOAD_COMPLETE;
    return at == end;
}

/* "vcpu N rip 0x.. address 0x.. error_code 0x..", from 6.0 on. */
static int read_usual_page_fault(const char *at, const char *end, payload *out) {
    const char *from;
    uint64_t number;
    EXPECT("vcpu ");
    at = skip_digits(at, end);
    EXPECT(" rip 0x"); /* the exit's */
    at = skip_word(at, end);
    EXPECT_HEX(" address 0x", out->detail);
    EXPECT_HEX(" error_code 0x", out->value);
    out->has = HAS_SUBJECT;
    out->understood = at;
    out->state = PAYLOAD_COMPLETE;
    return at == end;
}

/* "msr_write 6e0 = 0x..". */
static int read_usual_msr(const char *at, const char *end, payload *out) {
    const char *from;
    uint64_t number;
    EXPECT("msr_");
    if (at < end && *at == 'w') {
        out->flags = VTX_EXIT_WRITE;
        EXPECT_HEX("write ", out->detail);
    } else {
        EXPECT_HEX("read ", out->detail);
    }
    EXPECT_HEX(" = 0x", out->value);
    out->has = HAS_SUBJECT;
    out->understood = at;
    out->state = PAYLOAD_COMPLETE;
    return at == end;
}

static int read_usual(enum vtx_exit_event event, const char *at, const char *end, payload *out) {
    switch (event) {
    case VTX_EVENT_EXIT:
        return read_usual_exit(at, end, out);
    case VTX_EVENT_ENTRY:
        return read_usual_entry(at, end, out);
    case VTX_EVENT_PAGE_FAULT:
        return read_usual_page_fault(at, end, out);
    case VTX_EVENT_MSR:
        return read_usual_msr(at, end, out);
    default:
        return 0;
    }
}

static void read_exit(cursor *in, payload *out) {
    word key;
    out->state = PAYLOAD_COMPLETE;
    skip_complaints(in);
    while (next_word(in, &key)) {
        const char *const key_end = key.end;
        const char *const before = out->understood;
        if (!take_key(in, out, &key)) {
            if (out->understood == before && in->at == in->end && key_end == in->end)
                out->state = PAYLOAD_PARTIAL;
            break;
        }
    }
    if (!(out->has & HAS_REASON))
        out->state = PAYLOAD_BAD;
    else if (!(out->flags & VTX_EXIT_RIP) && out->state == PAYLOAD_COMPLETE)
        out->state = PAYLOAD_PARTIAL;
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
