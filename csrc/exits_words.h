/* Words, numbers and names of payloads: what exits_payload.c, exits_exit.c and exits_usual.c share. */
#ifndef VTX_EXITS_WORDS_H
#define VTX_EXITS_WORDS_H

#include "exits.h"

typedef struct {
    const char *at, *end;
    int last_of_cut_text;
} word;

/* ---- Words and numbers --------------------------------------------------------------------- */

static inline int next_word(cursor *in, word *out) {
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

static inline int has_prefix(const char *at, const char *end) {
    return end - at > 2 && at[0] == '0' && (at[1] | 32) == 'x';
}

#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define EACH(byte) (UINT64_C(0x0101010101010101) * (byte))

/* Eight lower-case hexadecimal digits at once: kernels pad their numbers to 16. 0 if they are not
 * all digits. A letter has bit 6 set, and its value is the low half plus 9. */
static inline int eight_digits(const char *at, uint64_t *value) {
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
static inline int eight_digits(const char *at, uint64_t *value) {
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

static inline int is_name(const word *w) {
    for (const char *at = w->at; at < w->end; at++)
        if (!in_name[(unsigned char)*at])
            return 0;
    return w->end > w->at && w->end - w->at < EXITS_MAX_NAME - 16;
}

enum base { HEX, DECIMAL };

/* The value behind a key: hexadecimal with or without 0x, or decimal. A comma or
 * "[immediate exit]" may be glued to it. Returns 0 if reading must stop: none follows, or it is no
 * number. Without *found the number is there, but the text was cut behind its last digit. */
int take(cursor *in, payload *out, enum base base, uint64_t *value, int *found);

/* kvm_exit and its relatives, in any order of keys (exits_exit.c). */
void read_exit(cursor *in, payload *out);
/* The short way (exits_usual.c): 0 if the words are not exactly the usual ones. */
int read_usual(enum vtx_exit_event event, const char *at, const char *end, payload *out);
/* Fields as key=value (exits_fields.c): 0 if the words are no such fields. */
int read_fields(enum vtx_exit_event event, const char *at, const char *end, int cut,
                payload *out);

#endif
