/* Recorded references: the check of a stream, and the door to the readers of foreign formats. */
#include "streams.h"

#include <stdlib.h>

/* ---- The check ------------------------------------------------------------------------------- */

/* A fetch of no bytes, or more than STREAM_MAX_BYTES. */
static int is_bad(uint64_t record) {
    const uint64_t head = record >> 48;
    return head == 0 || (head & 0x3fff) > STREAM_MAX_BYTES;
}

/* Whether some record of a block may be bad: two operations a record, and no branch. */
static int suspicious(const uint64_t *records, uint64_t count) {
    uint64_t empty = 0, any = 0;
    for (uint64_t i = 0; i < count; i++) {
        empty |= (records[i] >> 48) - 1;
        any |= records[i];
    }
    return (empty >> 63 | (any >> 60 & 3)) != 0; /* 0 bytes fetched; sizes from 4096 on */
}

static void count_kinds(const uint64_t *records, uint64_t count, uint64_t *kinds) {
    uint64_t low = 0, high = 0, both = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t kind = records[i] >> 62;
        low += kind & 1;
        high += kind >> 1;
        both += kind & kind >> 1;
    }
    kinds[VTX_MODIFY] += both;
    kinds[VTX_LOAD] += low - both;
    kinds[VTX_STORE] += high - both;
    kinds[VTX_FETCH] += count + both - low - high;
}

uint64_t vtx_stream_check(const uint64_t *records, uint64_t count, uint64_t *kinds) {
    enum { BLOCK = 1024 };
    for (uint64_t start = 0; start < count; start += BLOCK) {
        const uint64_t stop = count - start < BLOCK ? count : start + BLOCK;
        if (suspicious(records + start, stop - start))
            for (uint64_t i = start; i < stop; i++)
                if (is_bad(records[i]))
                    return i;
        if (kinds)
            count_kinds(records + start, stop - start, kinds);
    }
    return count;
}

/* ---- Scanners -------------------------------------------------------------------------------- */

vtx_scanner *vtx_scanner_new(uint32_t format, uint32_t entry_bytes) {
    if (format > VTX_STREAM_CLOUDSUITE)
        return NULL;
    if (format == VTX_STREAM_DRMEMTRACE && entry_bytes != 8 && entry_bytes != 12 &&
        entry_bytes != 16)
        return NULL;
    vtx_scanner *scanner = calloc(1, sizeof *scanner);
    if (!scanner)
        return NULL;
    scanner->threads = calloc(STREAM_MAX_THREADS, sizeof *scanner->threads);
    if (!scanner->threads) {
        free(scanner);
        return NULL;
    }
    scanner->format = format;
    scanner->entry_bytes = entry_bytes;
    scanner->wanted = 1;
    scanner->last_fetch = UINT64_MAX;
    return scanner;
}

void vtx_scanner_free(vtx_scanner *scanner) {
    if (!scanner)
        return;
    free(scanner->threads);
    free(scanner);
}

void vtx_scanner_only_pid(vtx_scanner *scanner, uint64_t pid) {
    scanner->only_pid = 1;
    scanner->wanted_pid = pid;
    scanner->wanted = 0;
}

void vtx_scanner_only_tid(vtx_scanner *scanner, uint64_t tid) {
    scanner->only_tid = 1;
    scanner->wanted_tid = tid;
    scanner->wanted = 0;
}

uint64_t vtx_scanner_scan(vtx_scanner *scanner, const char *bytes, uint64_t length, int final,
                          int strict, uint64_t *out, uint64_t capacity, uint64_t *count) {
    stream_out records = {out, out + capacity};
    uint64_t done;
    switch (scanner->format) {
    case VTX_STREAM_LACKEY:
        done = stream_scan_lackey(scanner, bytes, length, final, strict, &records);
        break;
    case VTX_STREAM_DRMEMTRACE:
        done = stream_scan_entries(scanner, bytes, length, strict, &records);
        break;
    default:
        done = stream_scan_instructions(scanner, bytes, length, &records);
        break;
    }
    *count = (uint64_t)(records.at - out);
    const uint64_t room = (uint64_t)(records.end - records.at);
    const int stopped = strict && scanner->counts.malformed;
    if (final && !stopped && done < length && room >= STREAM_MOST_OF_ONE) {
        /* Nothing more comes, and what is left is no whole entry. */
        scanner->counts.read++;
        scanner->counts.skipped[VTX_STREAM_CUT]++;
        done = length;
    }
    return done;
}

const vtx_stream_counts *vtx_scanner_counted(const vtx_scanner *scanner) {
    return &scanner->counts;
}
