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

/* The kind of access that three characters announce, or -1. */
static inline int kind_of(const char *line) {
    if (line[2] != ' ')
        return -1;
    if (line[0] == 'I')
        return line[1] == ' ' ? VTX_FETCH : -1;
    if (line[0] != ' ')
        return -1;
    switch (line[1]) {
    case 'L':
        return VTX_LOAD;
    case 'S':
        return VTX_STORE;
    case 'M':
        return VTX_MODIFY;
    default:
        return -1;
    }
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
        const char *next = read_rest(at + 3, &address, &size);
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
