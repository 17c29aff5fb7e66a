/* Reading VM-exit traces as text: what the files exits*.c share.
 *
 *   exits_line.c     one physical line: its end, quoting, and the frame before the payload
 *   exits_payload.c  one payload: the words after the event's name (with exits_exit.c, _usual, _fields)
 *   exits_stream.c   the threads: an exit waits for its details and its entry
 *   exits.c          chunks of bytes: lines, lines that a mailer broke, and what each was
 *
 * Nothing here depends on the rest of the core. */
#ifndef VTX_EXITS_H
#define VTX_EXITS_H

#include "core.h"

#include <string.h>

enum {
    EXITS_MAX_LINE = 1 << 16, /* longer lines are no event of anybody's */
    EXITS_MAX_LOGICAL = 4096, /* a line joined from the pieces that a mailer left */
    EXITS_MAX_PIECES = 6,
    EXITS_MAX_NAMES = 4096,
    EXITS_MAX_NAME = 64,
    EXITS_MAX_STREAMS = 1 << 17,
    EXITS_MAX_PREFIX = 64,
    EXITS_PREFIXES = 8, /* a power of two */
    EXITS_NO_CPU = 0xffff
};

/* ---- Words ------------------------------------------------------------------------------- */

typedef struct {
    const char *at, *end;
    int cut; /* the text ends in the middle of a file without a final newline: distrust its end */
} cursor;

static inline int is_blank(char c) { return c == ' ' || c == '\t'; }
static inline int is_digit(char c) { return c >= '0' && c <= '9'; }

static inline const char *skip_blanks(const char *at, const char *end) {
    while (at < end && is_blank(*at))
        at++;
    return at;
}

static inline const char *skip_word(const char *at, const char *end) {
#if defined(__GNUC__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    /* Eight bytes at once: the lowest byte that equals a blank or a tab gets bit 7. */
    for (; end - at >= 8; at += 8) {
        const uint64_t ones = UINT64_C(0x0101010101010101), tops = ones << 7;
        uint64_t text;
        memcpy(&text, at, sizeof text);
        const uint64_t blanks = text ^ ones * ' ', tabs = text ^ ones * '\t';
        const uint64_t found =
            (((blanks - ones) & ~blanks) | ((tabs - ones) & ~tabs)) & tops;
        if (found)
            return at + (__builtin_ctzll(found) >> 3);
    }
#endif
    while (at < end && !is_blank(*at))
        at++;
    return at;
}

/* Whether `length` bytes at both places are equal; for a length that the compiler knows. */
static inline int same(const char *a, const char *b, size_t length) {
    uint64_t x, y;
    if (length < 8 || length > 16)
        return memcmp(a, b, length) == 0;
    memcpy(&x, a, 8);
    memcpy(&y, b, 8);
    if (x != y)
        return 0;
    memcpy(&x, a + length - 8, 8);
    memcpy(&y, b + length - 8, 8);
    return x == y;
}

static inline const char *skip_digits(const char *at, const char *end) {
    while (at < end && is_digit(*at))
        at++;
    return at;
}

/* ---- One line ------------------------------------------------------------------------------ */

typedef struct {
    const char *at, *end; /* without quoting, surrounding blanks and line end */
    const char *next;     /* first byte of the next line */
    int cut;              /* the last line, and no newline ends it */
} line;

enum frame_state {
    FRAME_NONE = 0,  /* no event starts here */
    FRAME_OPEN = 1,  /* a thread and a processor, or a stamp, but the event is not on this line */
    FRAME_EVENT = 2
};

typedef struct {
    enum frame_state state;
    enum vtx_exit_event event; /* FRAME_EVENT */
    const char *payload;
    uint64_t time_ns;
    uint64_t stream; /* key of the thread; 0 if the line names none */
    uint32_t tid, domain;
    uint16_t cpu;
    uint8_t has_time, fraction_digits;
    uint8_t stamp_without_unit; /* an integer: some clock's ticks */
    uint8_t bare;               /* an event's name alone opens the line */
    uint8_t nested;             /* Xen: vmexit(n) */
} frame;

/* 1 and the line at `at`; 0 if it does not end before `end` and more may come. */
/* "COMM-PID [CPU]" of a line before: the next line's is one of a few more often than not. */
typedef struct {
    uint32_t length; /* 0: none */
    uint32_t tid;
    uint16_t cpu;
    uint64_t tail; /* its last eight bytes */
    char text[EXITS_MAX_PREFIX];
} prefix;

typedef struct {
    prefix entries[EXITS_PREFIXES];
    uint32_t last, oldest;
} prefixes;

int line_at(const char *at, const char *end, int final, line *out);
void frame_read(const char *at, const char *end, prefixes *known, frame *out);
/* The frame of acrntrace or of the old kvmtrace (exits_fields.c); *out stays as it is if it is none. */
void frame_of_tracer(const char *at, const char *end, frame *out);

/* ---- One payload --------------------------------------------------------------------------- */

enum payload_state {
    PAYLOAD_BAD = 0,     /* no such event, or cut before it says anything */
    PAYLOAD_PARTIAL = 1, /* usable, and more was to come */
    PAYLOAD_COMPLETE = 2
};

/* HAS_SUBJECT: what the event is about (address, MSR, port, leaf; for an entry, a vCPU). */
enum { HAS_VCPU = 1, HAS_REASON = 2, HAS_SUBJECT = 4, HAS_VECTOR = 8 };

typedef struct {
    enum payload_state state;
    const char *understood; /* end of the last word that the grammar knows */
    uint32_t has;
    uint32_t flags; /* enum vtx_exit_flag */
    uint32_t vcpu;
    uint64_t rip, info1, info2, detail, value;
    uint32_t intr_info, error_code, vector;
    const char *name; /* exit reason, as printed */
    uint32_t name_length;
    uint8_t detail_kind, detail_size;
} payload;

void payload_read(enum vtx_exit_event event, const char *at, const char *end, int cut,
                  payload *out);

/* ---- Threads ------------------------------------------------------------------------------- */

typedef struct {
    uint64_t line, run_line, rip, detail;
    uint32_t flags, repeats;
    uint16_t reason;
    uint8_t detail_kind;
} last_exit;

typedef struct {
    uint64_t key;
    int32_t vcpu; /* last one it entered as, or -1 */
    uint8_t used, open, ambiguous, pad;
    vtx_exit exit; /* while open; then the last one */
    last_exit last; /* the one before */
} stream;

struct vtx_exits {
    vtx_exit_counts counts;
    stream *streams;
    uint32_t stream_capacity, stream_count;
    uint64_t last_bare; /* the stream of the last exit on a line that names no thread */
    char (*names)[EXITS_MAX_NAME];
    uint32_t name_count;
    uint16_t name_slots[EXITS_MAX_NAMES * 2]; /* index + 1 */
    int skipping; /* inside a line that is too long */
    int failed;   /* out of memory */
    uint64_t close_at;
    prefixes known;
    char logical[EXITS_MAX_LOGICAL];
};

/* The two return 1 if they wrote *out: an exit that is over. `*used` says whether the event was
 * one that this scanner could take. */
int stream_event(vtx_exits *scanner, const frame *where, const payload *what, uint64_t line_number,
                 vtx_exit *out, int *used);
uint64_t stream_close(vtx_exits *scanner, vtx_exit *out, uint64_t capacity);

#endif
