/* The words of kvm_exit, kvm_nested_vmexit, kvm_nested_vmexit_inject and xenalyze's vmexit, as keys and
 * values in any order. */
#include "exits_words.h"

#include <string.h>

/* Whether a word is a hexadecimal number with 0x. */
static int is_number(const word *w) {
    uint64_t value = 0;
    return has_prefix(w->at, w->end) && hex_digits(w->at + 2, w->end, &value) == w->end;
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

void read_exit(cursor *in, payload *out) {
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
