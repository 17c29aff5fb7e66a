/* Readers of recorded references: what their files share. */
#ifndef VTX_STREAMS_H
#define VTX_STREAMS_H

#include "core.h"

enum {
    STREAM_MAX_BYTES = 4096,  /* of one record */
    STREAM_LONG_LINE = 4096,  /* no reference is as long */
    STREAM_MOST_OF_ONE = 32,  /* records that one line or entry can come to */
    STREAM_MAX_THREADS = 8192 /* that a trace names and a filter tells apart: a power of two */
};

typedef struct {
    uint64_t tid, pid;
    int used;
} stream_thread;

struct vtx_scanner {
    vtx_stream_counts counts;
    uint32_t format, entry_bytes;
    int only_pid, only_tid;
    uint64_t wanted_pid, wanted_tid;
    uint64_t tid, pid;   /* of the entries that follow */
    int wanted;          /* and whether they are asked for */
    uint64_t last_fetch; /* address of the last instruction that was fetched */
    uint64_t next_fetch; /* where the one behind it lies */
    int passing;         /* within a line that is too long to be a reference */
    stream_thread *threads;
};

typedef struct {
    uint64_t *at; /* where the next record goes */
    uint64_t *end;
} stream_out;

/* One record; the size has been checked. */
static inline uint64_t stream_record(uint64_t kind, uint64_t size, uint64_t address) {
    return kind << 62 | size << 48 | (address & ((UINT64_C(1) << 48) - 1));
}

static inline int stream_canonical(uint64_t address) {
    return address + (UINT64_C(1) << 47) < UINT64_C(1) << 48;
}

uint64_t stream_scan_lackey(vtx_scanner *scanner, const char *bytes, uint64_t length, int final,
                            int strict, stream_out *out);
uint64_t stream_scan_entries(vtx_scanner *scanner, const char *bytes, uint64_t length, int strict,
                             stream_out *out);
uint64_t stream_scan_instructions(vtx_scanner *scanner, const char *bytes, uint64_t length,
                                  stream_out *out);

#endif
