/* Entries of DynamoRIO's drmemtrace and instructions of ChampSim: little-endian on any host. */
#include "streams.h"

/* trace_type_t of DynamoRIO's trace_entry.h. */
enum {
    TYPE_READ = 0,
    TYPE_WRITE = 1,
    TYPE_PREFETCH = 2,
    TYPE_PREFETCH_INSTR = 9,
    TYPE_INSTR = 10,
    TYPE_INSTR_RETURN = 16,
    TYPE_INSTR_BUNDLE = 17,
    TYPE_INSTR_FLUSH = 18,
    TYPE_DATA_FLUSH_END = 21,
    TYPE_THREAD = 22,
    TYPE_THREAD_EXIT = 23,
    TYPE_PID = 24,
    TYPE_HEADER = 25,
    TYPE_FOOTER = 26,
    TYPE_HARDWARE_PREFETCH = 27,
    TYPE_MARKER = 28,
    TYPE_INSTR_NO_FETCH = 29,
    TYPE_INSTR_MAYBE_FETCH = 30,
    TYPE_INSTR_SYSENTER = 31,
    TYPE_PREFETCH_READ_L1_NT = 32,
    TYPE_PREFETCH_WRITE_L3_NT = 46,
    TYPE_ENCODING = 47,
    TYPE_INSTR_TAKEN_JUMP = 48,
    TYPE_INSTR_UNTAKEN_JUMP = 49,
    TYPE_NOT_ASSIGNED = 128 /* no version has come near it: the file is something else */
};

static inline uint64_t little(const unsigned char *bytes, unsigned count) {
    uint64_t value = 0;
    for (unsigned i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

/* One reference, in pieces of STREAM_MAX_BYTES. Returns 1 if it gave a record. */
static int emit(vtx_scanner *scanner, stream_out *out, enum vtx_access kind, uint64_t address,
                uint64_t size) {
    if (!stream_canonical(address) || !stream_canonical(address + size - 1)) {
        scanner->counts.dropped++;
        return 0;
    }
    scanner->counts.split += size > STREAM_MAX_BYTES;
    for (; size > STREAM_MAX_BYTES; size -= STREAM_MAX_BYTES, address += STREAM_MAX_BYTES) {
        *out->at++ = stream_record(kind, STREAM_MAX_BYTES, address);
        scanner->counts.kinds[kind]++;
    }
    *out->at++ = stream_record(kind, size, address);
    scanner->counts.kinds[kind]++;
    return 1;
}

/* ---- drmemtrace ------------------------------------------------------------------------------ */

typedef struct {
    unsigned type, size;
    uint64_t address;
    const unsigned char *lengths; /* of a bundle: the address, byte by byte */
    unsigned address_bytes;
} entry;

static stream_thread *thread_of(vtx_scanner *scanner, uint64_t tid) {
    uint64_t at = (tid * UINT64_C(0x9e3779b97f4a7c15)) >> 40;
    for (unsigned tries = 0; tries < STREAM_MAX_THREADS; tries++, at++) {
        stream_thread *thread = &scanner->threads[at & (STREAM_MAX_THREADS - 1)];
        if (!thread->used) {
            thread->used = 1;
            thread->tid = tid;
            scanner->counts.threads++;
            return thread;
        }
        if (thread->tid == tid)
            return thread;
    }
    return NULL;
}

static void switch_to(vtx_scanner *scanner, uint64_t tid, int has_pid, uint64_t pid) {
    stream_thread *thread = thread_of(scanner, tid);
    if (thread && has_pid)
        thread->pid = pid;
    scanner->tid = tid;
    scanner->pid = has_pid ? pid : thread ? thread->pid : 0;
    scanner->wanted = (!scanner->only_tid || scanner->tid == scanner->wanted_tid) &&
                      (!scanner->only_pid || scanner->pid == scanner->wanted_pid);
}

static int fetch(vtx_scanner *scanner, const entry *one, stream_out *out) {
    if (one->size == 0)
        return VTX_STREAM_EMPTY; /* says where the accesses behind it come from */
    const int again = one->type == TYPE_INSTR_NO_FETCH ||
                      (one->type == TYPE_INSTR_MAYBE_FETCH && one->address == scanner->last_fetch);
    scanner->last_fetch = one->address;
    scanner->next_fetch = one->address + one->size;
    if (again)
        return VTX_STREAM_NO_FETCH;
    return emit(scanner, out, VTX_FETCH, one->address, one->size) ? -1 : VTX_STREAM_NON_CANONICAL;
}

static int fetch_bundle(vtx_scanner *scanner, const entry *one, stream_out *out) {
    int given = 0;
    if (one->size == 0 || one->size > one->address_bytes)
        return VTX_STREAM_MALFORMED;
    for (unsigned i = 0; i < one->size; i++) {
        const unsigned length = one->lengths[i];
        if (length)
            given |= emit(scanner, out, VTX_FETCH, scanner->next_fetch, length);
        scanner->last_fetch = scanner->next_fetch;
        scanner->next_fetch += length;
    }
    return given ? -1 : VTX_STREAM_NON_CANONICAL;
}

static int is_prefetch(unsigned type) {
    return (type >= TYPE_PREFETCH && type <= TYPE_PREFETCH_INSTR) ||
           type == TYPE_HARDWARE_PREFETCH ||
           (type >= TYPE_PREFETCH_READ_L1_NT && type <= TYPE_PREFETCH_WRITE_L3_NT);
}

static int is_fetch(unsigned type) {
    return (type >= TYPE_INSTR && type <= TYPE_INSTR_RETURN) ||
           (type >= TYPE_INSTR_NO_FETCH && type <= TYPE_INSTR_SYSENTER) ||
           type == TYPE_INSTR_TAKEN_JUMP || type == TYPE_INSTR_UNTAKEN_JUMP;
}

/* Entries that are about the trace: says which they are, or -1. */
static int administration(vtx_scanner *scanner, const entry *one) {
    switch (one->type) {
    case TYPE_THREAD:
        switch_to(scanner, one->address, 0, 0);
        return VTX_STREAM_IDENTITY;
    case TYPE_PID:
        switch_to(scanner, scanner->tid, 1, one->address);
        return VTX_STREAM_IDENTITY;
    case TYPE_THREAD_EXIT:
        return VTX_STREAM_IDENTITY;
    case TYPE_HEADER:
        scanner->counts.version = one->address;
        return VTX_STREAM_FRAME;
    case TYPE_FOOTER:
        return VTX_STREAM_FRAME;
    case TYPE_MARKER:
        return VTX_STREAM_MARKER;
    case TYPE_ENCODING:
        return VTX_STREAM_ENCODING;
    default:
        return one->type >= TYPE_NOT_ASSIGNED ? VTX_STREAM_MALFORMED : -1;
    }
}

/* Says why an entry gives no record, or -1 if it does. */
static int take_entry(vtx_scanner *scanner, const entry *one, stream_out *out) {
    const int is_access = one->type == TYPE_READ || one->type == TYPE_WRITE;
    if (!is_access && !is_fetch(one->type)) {
        const int why = administration(scanner, one);
        if (why >= 0)
            return why;
    }
    if (!scanner->wanted)
        return VTX_STREAM_FILTERED;
    if (is_access) {
        if (one->size == 0)
            return VTX_STREAM_EMPTY;
        const enum vtx_access kind = one->type == TYPE_READ ? VTX_LOAD : VTX_STORE;
        return emit(scanner, out, kind, one->address, one->size) ? -1 : VTX_STREAM_NON_CANONICAL;
    }
    if (is_fetch(one->type))
        return fetch(scanner, one, out);
    if (one->type == TYPE_INSTR_BUNDLE)
        return fetch_bundle(scanner, one, out);
    if (one->type >= TYPE_INSTR_FLUSH && one->type <= TYPE_DATA_FLUSH_END)
        return VTX_STREAM_FLUSH;
    return is_prefetch(one->type) ? VTX_STREAM_PREFETCH : VTX_STREAM_OTHER;
}

uint64_t stream_scan_entries(vtx_scanner *scanner, const char *bytes, uint64_t length, int strict,
                             stream_out *out) {
    const unsigned entry_bytes = scanner->entry_bytes;
    const unsigned offset = entry_bytes == 16 ? 8 : 4; /* 16: with the padding of a C structure */
    const unsigned address_bytes = entry_bytes == 8 ? 4 : 8;
    uint64_t done = 0;
    while (length - done >= entry_bytes && out->end - out->at >= STREAM_MOST_OF_ONE) {
        const unsigned char *at = (const unsigned char *)bytes + done;
        const entry one = {
            .type = (unsigned)little(at, 2),
            .size = (unsigned)little(at + 2, 2),
            .address = little(at + offset, address_bytes),
            .lengths = at + offset,
            .address_bytes = address_bytes,
        };
        const int why = take_entry(scanner, &one, out);
        done += entry_bytes;
        scanner->counts.read++;
        if (why < 0) {
            scanner->counts.used++;
            continue;
        }
        scanner->counts.skipped[why]++;
        if (why == VTX_STREAM_MALFORMED) {
            if (!scanner->counts.malformed)
                scanner->counts.malformed = scanner->counts.read;
            if (strict)
                break;
        }
    }
    return done;
}

/* ---- ChampSim -------------------------------------------------------------------------------- */

/* Offsets within an instruction; its memory operands are addresses, and 0 for none. */
typedef struct {
    unsigned bytes, stores, store_count, loads, load_count;
} layout;

static const layout input_instr = {64, 16, 2, 32, 4};
static const layout cloudsuite_instr = {96, 24, 4, 56, 4};

/* The format has no sizes: every reference is of one byte, so that none crosses a page. */
static int operands(vtx_scanner *scanner, const unsigned char *at, unsigned count,
                    enum vtx_access kind, stream_out *out) {
    int given = 0;
    for (unsigned i = 0; i < count; i++) {
        const uint64_t address = little(at + 8 * i, 8);
        if (address)
            given |= emit(scanner, out, kind, address, 1);
    }
    return given;
}

uint64_t stream_scan_instructions(vtx_scanner *scanner, const char *bytes, uint64_t length,
                                  stream_out *out) {
    const layout *const of =
        scanner->format == VTX_STREAM_CLOUDSUITE ? &cloudsuite_instr : &input_instr;
    uint64_t done = 0;
    while (length - done >= of->bytes && out->end - out->at >= STREAM_MOST_OF_ONE) {
        const unsigned char *at = (const unsigned char *)bytes + done;
        int given = emit(scanner, out, VTX_FETCH, little(at, 8), 1);
        given |= operands(scanner, at + of->loads, of->load_count, VTX_LOAD, out);
        given |= operands(scanner, at + of->stores, of->store_count, VTX_STORE, out);
        done += of->bytes;
        scanner->counts.read++;
        if (given)
            scanner->counts.used++;
        else
            scanner->counts.skipped[VTX_STREAM_NON_CANONICAL]++;
    }
    return done;
}
