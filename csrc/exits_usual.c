/* The short way through payloads: exactly the words that usual kernels print. It leaves everything to
 * the long way at the first byte that differs. */
#include "exits_words.h"

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

int read_usual(enum vtx_exit_event event, const char *at, const char *end, payload *out) {
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
