/* Chunks of bytes in, VM exits out. Each line is looked at once: the frame of the line behind a
 * record, which has to be read to know that the record is over, is kept for that line's own turn. */
#include "exits.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    vtx_exits *scanner;
    const char *end;
    int final;
    const char *ahead_at; /* the line that is known, and its frame */
    line ahead_line;
    frame ahead;
} reader;

typedef struct {
    const char *text, *end; /* in the chunk, or joined in scanner->logical */
    int cut;
    frame where;
    payload what;
    const char *next;
    uint64_t pieces;
} record;

vtx_exits *vtx_exits_new(void) {
    vtx_exits *scanner = calloc(1, sizeof *scanner);
    if (!scanner)
        return NULL;
    scanner->names = calloc(EXITS_MAX_NAMES, sizeof *scanner->names);
    if (!scanner->names) {
        free(scanner);
        return NULL;
    }
    return scanner;
}

void vtx_exits_free(vtx_exits *scanner) {
    if (!scanner)
        return;
    free(scanner->streams);
    free(scanner->names);
    free(scanner);
}

const vtx_exit_counts *vtx_exits_counted(const vtx_exits *scanner) { return &scanner->counts; }

uint64_t vtx_exits_name_count(const vtx_exits *scanner) { return scanner->name_count; }

const char *vtx_exits_name(const vtx_exits *scanner, uint64_t index) {
    return index < scanner->name_count ? scanner->names[index] : NULL;
}

static void skip(vtx_exits *scanner, enum vtx_exit_skip why, uint64_t lines) {
    scanner->counts.read += lines;
    scanner->counts.skipped[why] += lines;
}

/* Mail programs put no-break spaces (U+00A0) where blanks were. */
static void blank_no_break_spaces(char *bytes, uint64_t length) {
    char *const end = bytes + length;
    for (char *at = bytes; (at = memchr(at, 0xc2, (size_t)(end - at))) != NULL && at + 1 < end; at++)
        if ((unsigned char)at[1] == 0xa0)
            at[0] = at[1] = ' ';
}

/* ---- Lines that are no event ----------------------------------------------------------------- */

static const char *find(const char *at, const char *end, const char *text) {
    const size_t length = strlen(text);
    while (at < end && (at = memchr(at, *text, (size_t)(end - at)))) {
        if ((size_t)(end - at) >= length && memcmp(at, text, length) == 0)
            return at;
        at++;
    }
    return NULL;
}

/* "CPU:3 [LOST 128 EVENTS]", "CPU:3 [128 EVENTS DROPPED]", "[128 events dropped]". */
static int is_loss(const char *at, const char *end, uint64_t *events) {
    const char *open = end - at < 256 ? find(at, end, "[") : NULL;
    *events = 0;
    if (!open)
        return 0;
    const int lost = find(open, end, "LOST") && find(open, end, "EVENTS");
    if (!lost && !find(open, end, "EVENTS DROPPED") && !find(open, end, "events dropped"))
        return 0;
    while (open < end && !is_digit(*open))
        open++;
    for (; open < end && is_digit(*open) && *events < UINT64_C(1) << 56; open++)
        *events = *events * 10 + (uint64_t)(*open - '0');
    return 1;
}

static void skip_line(vtx_exits *scanner, const line *l) {
    uint64_t events;
    enum vtx_exit_skip why = VTX_SKIP_NO_EVENT;
    if (l->at == l->end)
        why = VTX_SKIP_BLANK;
    else if (*l->at == '#' || find(l->at, l->at + (l->end - l->at > 5 ? 5 : 0), "cpus="))
        why = VTX_SKIP_COMMENT;
    else if (is_loss(l->at, l->end, &events)) {
        why = VTX_SKIP_LOST;
        scanner->counts.lost_events += events;
    }
    skip(scanner, why, 1);
}

/* ---- Records --------------------------------------------------------------------------------- */

static void read_record(vtx_exits *scanner, record *r) {
    frame_read(r->text, r->end, &scanner->known, &r->where);
    if (r->where.state == FRAME_EVENT)
        payload_read(r->where.event, r->where.payload, r->end, r->cut, &r->what);
}

/* Whether the words so far end where more could come. */
static int takes_more(const record *r) {
    if (r->where.state == FRAME_OPEN)
        return 1;
    if (r->where.event == VTX_EVENT_OTHER)
        return r->where.payload == r->end;
    return r->where.event < VTX_EVENT_XEN_EXIT && r->what.understood == r->end;
}

static int fits(const record *r) {
    if (r->where.state != FRAME_EVENT)
        return r->where.state == FRAME_OPEN;
    return r->where.event == VTX_EVENT_OTHER || r->what.understood == r->end;
}

/* Put a line behind the record, if the two make sense together. */
static int join(reader *in, record *r, const line *more) {
    char *const logical = in->scanner->logical;
    const size_t have = (size_t)(r->end - r->text), add = (size_t)(more->end - more->at);
    if (have + 1 + add > EXITS_MAX_LOGICAL)
        return 0;
    record longer = *r;
    memmove(logical, r->text, have);
    logical[have] = ' ';
    memcpy(logical + have + 1, more->at, add);
    longer.text = logical;
    longer.end = logical + have + 1 + add;
    longer.cut = more->cut;
    read_record(in->scanner, &longer);
    if (!fits(&longer)) {
        /* What was read before may point into `logical`, where the text still stands. */
        if (r->text == logical)
            read_record(in->scanner, r);
        return 0;
    }
    *r = longer;
    r->next = more->next;
    r->pieces++;
    return 1;
}

/* Take the lines behind a record that belong to it. 0: more bytes are needed to tell. */
static int take_continuations(reader *in, record *r) {
    while (r->pieces < EXITS_MAX_PIECES) {
        if (r->next == in->end)
            return in->final;
        const int wants = takes_more(r);
        if (!wants)
            return 1;
        in->ahead_at = NULL;
        if (!line_at(r->next, in->end, in->final, &in->ahead_line))
            return in->end - r->next > EXITS_MAX_LINE; /* that one is no continuation */
        const line more = in->ahead_line;
        if (more.end - more.at > EXITS_MAX_LOGICAL || more.at == more.end || *more.at == '#')
            return 1;
        frame_read(more.at, more.end, &in->scanner->known, &in->ahead);
        in->ahead_at = r->next;
        /* Behind a frame without an event, an event's name is the rest of that line. */
        const int rest = in->ahead.bare && r->where.state == FRAME_OPEN;
        if ((in->ahead.state != FRAME_NONE && !rest) || !join(in, r, &more))
            return 1;
        in->ahead_at = NULL;
    }
    return 1;
}

static int finish_record(reader *in, record *r, vtx_exit *out) {
    vtx_exits *scanner = in->scanner;
    vtx_exit_counts *counts = &scanner->counts;
    const uint64_t first = counts->read + 1;
    counts->joined += r->pieces - 1;
    if (r->where.state != FRAME_EVENT || r->where.event == VTX_EVENT_OTHER) {
        skip(scanner, r->where.state == FRAME_EVENT ? VTX_SKIP_OTHER_EVENT : VTX_SKIP_CUT,
             r->pieces);
        return 0;
    }
    if (r->where.fraction_digits > counts->fraction_digits)
        counts->fraction_digits = r->where.fraction_digits;
    counts->ticks += r->where.stamp_without_unit;
    int used;
    const int over = stream_event(scanner, &r->where, &r->what, first, out, &used);
    if (!used) {
        skip(scanner, VTX_SKIP_CUT, r->pieces);
        return 0;
    }
    counts->read += r->pieces;
    counts->used += r->pieces;
    counts->events[r->where.event]++;
    return over;
}

/* One line, with those that continue it. Returns the first byte behind, or NULL if more are
 * needed. */
static const char *read_one(reader *in, const char *at, vtx_exit *out, uint64_t *count) {
    const int known = in->ahead_at == at;
    line l = in->ahead_line;
    if (!known && !line_at(at, in->end, in->final, &l))
        return NULL;
    if (l.end - l.at > EXITS_MAX_LINE) {
        skip(in->scanner, VTX_SKIP_TOO_LONG, 1);
        return l.next;
    }
    record r;
    r.text = l.at;
    r.end = l.end;
    r.cut = l.cut;
    r.next = l.next;
    r.pieces = 1;
    if (known) {
        r.where = in->ahead;
        if (r.where.state == FRAME_EVENT)
            payload_read(r.where.event, r.where.payload, r.end, r.cut, &r.what);
    } else {
        read_record(in->scanner, &r);
    }
    if (r.where.state == FRAME_NONE) {
        skip_line(in->scanner, &l);
        return l.next;
    }
    if (!take_continuations(in, &r))
        return NULL;
    *count += (uint64_t)finish_record(in, &r, out);
    return r.next;
}

uint64_t vtx_exits_scan(vtx_exits *scanner, char *bytes, uint64_t length, int final, vtx_exit *out,
                        uint64_t capacity, uint64_t *count) {
    const char *at = bytes;
    reader in = {.scanner = scanner, .end = bytes + length, .final = final};
    *count = 0;
    blank_no_break_spaces(bytes, length);
    if (scanner->skipping) {
        const char *newline = length ? memchr(at, '\n', (size_t)length) : NULL;
        if (!newline)
            return length;
        scanner->skipping = 0;
        at = newline + 1;
    }
    while (at < in.end && *count < capacity) {
        const char *next = read_one(&in, at, out + *count, count);
        if (scanner->failed)
            return UINT64_MAX;
        if (next) {
            at = next;
            continue;
        }
        if (in.end - at > EXITS_MAX_LINE && !memchr(at, '\n', (size_t)(in.end - at))) {
            skip(scanner, VTX_SKIP_TOO_LONG, 1);
            scanner->skipping = 1;
            at = in.end;
        }
        break;
    }
    return (uint64_t)(at - bytes);
}

uint64_t vtx_exits_close(vtx_exits *scanner, vtx_exit *out, uint64_t capacity) {
    return stream_close(scanner, out, capacity);
}
