/* The text of valgrind's lackey: "I  0401ab70,3", " L 1fff000778,8", " S ...", " M ...": an address
 * in hexadecimal digits and a size in decimal ones, among lines of valgrind and of the program. */
#include "streams.h"

#include <string.h>

enum {
    /* Prefix, at most 16 digits, comma, at most 4 digits, CR, LF: what the quick reader may look at. */
    QUICK_BYTES = 32,
    NO_DIGIT = 255
};

#define X NO_DIGIT
static const uint8_t digit_of[256] = {
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, X, X, X, X, X, X,
    X, 10, 11, 12, 13, 14, 15, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, 10, 11, 12, 13, 14, 15, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
    X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X, X,
};
#undef X

/* Number of the lowest bit that is set. */
static inline unsigned bits_below(uint64_t value) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(value);
#else
    unsigned count = 0;
    for (; !(value & 1); value >>= 1)
        count++;
    return count;
#endif
}

/* The kind of access that three characters announce, or -1. */
static inline int kind_of(const char *line) {
    static const uint8_t kinds[256] = {
        [' '] = VTX_FETCH + 1, ['L'] = VTX_LOAD + 1, ['S'] = VTX_STORE + 1, ['M'] = VTX_MODIFY + 1};
    const int kind = kinds[(uint8_t)line[1]] - 1;
    const char begins = kind == VTX_FETCH ? 'I' : ' ';
    return (line[0] == begins) & (line[2] == ' ') ? kind : -1;
}

/* Read "address,size" and the end of the line; at least QUICK_BYTES can be looked at from the
 * beginning of the line. Returns what is behind it, or NULL. */
static inline const char *read_rest(const char *at, uint64_t *address, uint64_t *size) {
    const char *const digits = at;
    uint64_t value = 0, digit;
    while ((digit = digit_of[(uint8_t)*at]) != NO_DIGIT && at - digits < 17) {
        value = value << 4 | digit;
        at++;
    }
    if (*at != ',' || at == digits || at - digits > 16)
        return NULL;
    at++;
    uint64_t bytes = (uint64_t)(uint8_t)*at - '0';
    if (bytes > 9)
        return NULL;
    at++;
    for (int more = 0; more < 3 && (digit = (uint64_t)(uint8_t)*at - '0') <= 9; more++) {
        bytes = bytes * 10 + digit;
        at++;
    }
    at += *at == '\r';
    if (*at != '\n' || bytes - 1 >= STREAM_MAX_BYTES)
        return NULL;
    *address = value;
    *size = bytes;
    return at + 1;
}

/* ---- Quick lines: eight digits at a time --------------------------------------------------------
 *
 * Lackey pads addresses to eight digits, so a comma stands 8 to 15 characters behind the prefix. */

#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Eight characters, the first in the lowest byte; compilers make one load of it. */
static inline uint64_t load8(const char *at) {
    const uint8_t *b = (const uint8_t *)at;
    return (uint64_t)b[0] | (uint64_t)b[1] << 8 | (uint64_t)b[2] << 16 | (uint64_t)b[3] << 24 |
           (uint64_t)b[4] << 32 | (uint64_t)b[5] << 40 | (uint64_t)b[6] << 48 |
           (uint64_t)b[7] << 56;
}

/* Not 0 if a character is no hexadecimal digit. */
static inline uint64_t not_hexadecimal(uint64_t text) {
    const uint64_t high = EACH(0x80);
    const uint64_t low = text & ~high;
    const uint64_t digit = low ^ EACH('0');
    const uint64_t letter = (low | EACH(0x20)) ^ EACH(0x60); /* a to f: 1 to 6 */
    const uint64_t no_digit = digit + EACH(0x7f - 9);
    const uint64_t no_letter = (letter + EACH(0x7f - 6)) | ~(letter + EACH(0x7f));
    return (text | (no_digit & no_letter)) & high;
}

/* The number that eight hexadecimal digits stand for. */
static inline uint64_t value_of(uint64_t text) {
    uint64_t value = (text & EACH(0x0f)) + (text >> 6 & EACH(1)) * 9;
    value = (value << 4 | value >> 8) & UINT64_C(0x00ff00ff00ff00ff);
    value = (value << 8 | value >> 16) & UINT64_C(0x0000ffff0000ffff);
    return (value << 16 | value >> 32) & UINT64_C(0xffffffff);
}

/* Read "address,size\n" with 8 to 15 digits and a size of one digit; NULL if it is not so. */
static inline const char *read_quickly(const char *at, uint64_t *address, uint64_t *size) {
    const uint64_t first = load8(at), second = load8(at + 8);
    const uint64_t differs = second ^ EACH(',');
    const uint64_t found = (differs - EACH(1)) & ~differs & EACH(0x80);
    if (!found)
        return NULL;
    /* 8 times the number of digits beyond eight: bits below the lowest one of `found`. */
    const unsigned shift = bits_below(found) & ~7u;
    const uint64_t low = load8(at + shift / 8);
    const uint64_t high = (first << 1) << (63 - shift) | EACH('0') >> shift;
    const char *const end = at + 8 + shift / 8;
    const uint64_t bytes = (uint64_t)(uint8_t)end[1] - '0';
    if (not_hexadecimal(low) | not_hexadecimal(high) | (bytes - 1 > 8) | (end[2] != '\n'))
        return NULL;
    *address = value_of(high) << 32 | value_of(low);
    *size = bytes;
    return end + 3;
}

/* A line that is no reference: says why, or -1 if its reference has been read after all. */
static int odd_line(vtx_scanner *scanner, const char *line, size_t length, stream_out *out) {
    char padded[QUICK_BYTES] = {0};
    while (length && (line[length - 1] == '\r' || line[length - 1] == '\n'))
        length--;
    if (!length)
        return VTX_STREAM_BLANK;
    if (length >= 4 && line[0] == '=' && line[1] == '=' && digit_of[(uint8_t)line[2]] <= 9)
        return VTX_STREAM_MESSAGE;
    if (length >= 4 && line[0] == '-' && line[1] == '-' && digit_of[(uint8_t)line[2]] <= 9)
        return VTX_STREAM_MESSAGE; /* valgrind -v */
    const int kind = length >= 3 ? kind_of(line) : -1;
    if (kind < 0)
        return VTX_STREAM_OTHER;
    if (length > QUICK_BYTES - 2)
        return VTX_STREAM_MALFORMED;
    memcpy(padded, line, length);
    padded[length] = '\n';
    uint64_t address, size;
    if (!read_rest(padded + 3, &address, &size))
        return VTX_STREAM_MALFORMED;
    if (!stream_canonical(address)) {
        scanner->counts.dropped++;
        return VTX_STREAM_NON_CANONICAL;
    }
    *out->at++ = stream_record((uint64_t)kind, size, address);
    scanner->counts.kinds[kind]++;
    scanner->counts.used++;
    return -1;
}

/* Whole lines that are references and nothing else, as long as they last. */
static const char *quick_lines(vtx_scanner *scanner, const char *at, const char *end,
                               stream_out *out) {
    uint64_t kinds[4] = {0};
    uint64_t *record = out->at;
    while (end - at >= QUICK_BYTES && record < out->end) {
        uint64_t address, size;
        const int kind = kind_of(at);
        if (kind < 0)
            break;
        const char *next = read_quickly(at + 3, &address, &size);
        if (!next)
            next = read_rest(at + 3, &address, &size);
        if (!next || !stream_canonical(address))
            break;
        *record++ = stream_record((uint64_t)kind, size, address);
        kinds[kind]++;
        at = next;
    }
    const uint64_t lines = (uint64_t)(record - out->at);
    scanner->counts.read += lines;
    scanner->counts.used += lines;
    for (int kind = 0; kind < 4; kind++)
        scanner->counts.kinds[kind] += kinds[kind];
    out->at = record;
    return at;
}

/* Go to the end of a line whose beginning came with bytes before these. */
static const char *pass_line(vtx_scanner *scanner, const char *at, const char *end, int final) {
    const char *newline = memchr(at, '\n', (size_t)(end - at));
    if (newline || final) {
        scanner->passing = 0;
        scanner->counts.read++;
        scanner->counts.skipped[VTX_STREAM_OTHER]++;
    }
    return newline ? newline + 1 : end;
}

uint64_t stream_scan_lackey(vtx_scanner *scanner, const char *bytes, uint64_t length, int final,
                            int strict, stream_out *out) {
    const char *at = bytes;
    const char *const end = bytes + length;
    if (scanner->passing)
        at = pass_line(scanner, at, end, final);
    while (out->at < out->end) {
        at = quick_lines(scanner, at, end, out);
        if (at == end || out->at == out->end)
            break;
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        if (!newline && !final) {
            scanner->passing = end - at > STREAM_LONG_LINE;
            if (scanner->passing)
                at = end;
            break;
        }
        const char *next = newline ? newline + 1 : end;
        int why = odd_line(scanner, at, (size_t)(next - at), out);
        scanner->counts.read++;
        at = next;
        if (why == VTX_STREAM_MALFORMED && !newline)
            why = VTX_STREAM_CUT;
        if (why >= 0)
            scanner->counts.skipped[why]++;
        if (why == VTX_STREAM_MALFORMED && !scanner->counts.malformed)
            scanner->counts.malformed = scanner->counts.read;
        if (why == VTX_STREAM_MALFORMED && strict)
            break;
    }
    return (uint64_t)(at - bytes);
}
