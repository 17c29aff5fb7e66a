/* The threads of a trace. A VM exit stays open in its thread: what is traced there until the entry
 * is its detail, and the stamp of the entry makes its duration. An exit that another exit of the
 * same thread follows has no duration; nothing is guessed.
 *
 * A vCPU is known by its thread. Lines that name none are kept apart by the vCPU that the event
 * names, else by the processor. */
#include "exits.h"

#include <stdlib.h>
#include <string.h>

static const uint64_t by_vcpu = UINT64_C(1) << 40;
static const uint64_t by_cpu = UINT64_C(1) << 41;

static uint64_t mixed(uint64_t key) {
    key *= UINT64_C(0x9e3779b97f4a7c15);
    return key ^ key >> 32;
}

static stream *slot_of(stream *streams, uint32_t capacity, uint64_t key) {
    uint32_t at = (uint32_t)mixed(key) & (capacity - 1);
    while (streams[at].used && streams[at].key != key)
        at = (at + 1) & (capacity - 1);
    return &streams[at];
}

static int grow(vtx_exits *scanner) {
    const uint32_t capacity = scanner->stream_capacity ? scanner->stream_capacity * 2 : 64;
    stream *streams = calloc(capacity, sizeof *streams);
    if (!streams)
        return 0;
    for (uint32_t i = 0; i < scanner->stream_capacity; i++)
        if (scanner->streams[i].used)
            *slot_of(streams, capacity, scanner->streams[i].key) = scanner->streams[i];
    free(scanner->streams);
    scanner->streams = streams;
    scanner->stream_capacity = capacity;
    return 1;
}

/* The stream of a key, made on first use; NULL if memory is short or there are too many of them. */
static stream *stream_of(vtx_exits *scanner, uint64_t key) {
    if (scanner->stream_count * 2 >= scanner->stream_capacity) {
        if (scanner->stream_count >= EXITS_MAX_STREAMS)
            return NULL;
        if (!grow(scanner)) {
            scanner->failed = 1;
            return NULL;
        }
    }
    stream *found = slot_of(scanner->streams, scanner->stream_capacity, key);
    if (!found->used) {
        found->used = 1;
        found->key = key;
        found->vcpu = -1;
        scanner->stream_count++;
    }
    return found;
}

/* ---- Names ----------------------------------------------------------------------------------- */

/* The index of a name, or -1 if there are too many names. */
static int32_t intern(vtx_exits *scanner, const char *name, uint32_t length) {
    if (length >= EXITS_MAX_NAME)
        return -1;
    const uint32_t slots = EXITS_MAX_NAMES * 2;
    uint64_t hash = length;
    uint32_t i = 0;
    for (; i + 8 <= length; i += 8) {
        uint64_t eight;
        memcpy(&eight, name + i, sizeof eight);
        hash = mixed(hash ^ eight);
    }
    for (; i < length; i++)
        hash = (hash ^ (unsigned char)name[i]) * UINT64_C(0x100000001b3);
    uint32_t at = (uint32_t)mixed(hash) & (slots - 1);
    for (; scanner->name_slots[at]; at = (at + 1) & (slots - 1)) {
        const char *known = scanner->names[scanner->name_slots[at] - 1];
        if (memcmp(known, name, length) == 0 && !known[length])
            return scanner->name_slots[at] - 1;
    }
    if (scanner->name_count == EXITS_MAX_NAMES)
        return -1;
    memcpy(scanner->names[scanner->name_count], name, length);
    scanner->names[scanner->name_count][length] = 0;
    scanner->name_slots[at] = (uint16_t)(scanner->name_count + 1);
    return (int32_t)scanner->name_count++;
}

/* ---- Events ---------------------------------------------------------------------------------- */

static uint64_t key_of(vtx_exits *scanner, const frame *where, const payload *what) {
    if (where->stream)
        return where->stream;
    if (what->has & HAS_VCPU) {
        const uint64_t own = by_vcpu | what->vcpu;
        const uint64_t shared = by_cpu | where->cpu;
        /* An entry names its vCPU where an old exit did not. */
        const stream *waiting = scanner->stream_capacity
                                    ? slot_of(scanner->streams, scanner->stream_capacity, shared)
                                    : NULL;
        return where->event == VTX_EVENT_ENTRY && waiting && waiting->used ? shared : own;
    }
    if (where->event == VTX_EVENT_EXIT || where->event == VTX_EVENT_ENTRY)
        return by_cpu | where->cpu;
    return scanner->last_bare; /* a detail: of the exit that was last seen */
}

/* What telling a repetition needs of the exit before. */
static void keep_last(stream *in) {
    const vtx_exit *exit = &in->exit;
    in->last.line = exit->line;
    in->last.run_line = exit->run_line;
    in->last.rip = exit->rip;
    in->last.detail = exit->detail;
    in->last.flags = exit->flags;
    in->last.repeats = exit->repeats;
    in->last.reason = exit->reason;
    in->last.detail_kind = exit->detail_kind;
}

static void open_exit(vtx_exits *scanner, stream *in, const frame *where, const payload *what,
                      uint16_t reason, uint64_t line_number) {
    vtx_exit *exit = &in->exit;
    keep_last(in);
    memset(exit, 0, sizeof *exit);
    exit->flags = what->flags;
    if (where->has_time) {
        exit->flags |= VTX_EXIT_TIME;
        exit->time_ns = where->time_ns;
    } else {
        scanner->counts.untimed++;
    }
    if (where->event == VTX_EVENT_NESTED || where->nested)
        exit->flags |= VTX_EXIT_L2;
    exit->rip = what->rip;
    exit->info1 = what->info1;
    exit->info2 = what->info2;
    exit->intr_info = what->intr_info;
    exit->error_code = what->error_code;
    exit->reason = reason;
    exit->tid = where->tid;
    exit->cpu = where->cpu;
    exit->line = line_number;
    exit->vcpu = what->has & HAS_VCPU ? (int32_t)what->vcpu : in->vcpu;
    if (where->event == VTX_EVENT_XEN_EXIT)
        exit->vcpu = (int32_t)(uint32_t)where->stream;
    in->vcpu = exit->vcpu;
    in->open = 1;
    if (!where->stream) {
        scanner->last_bare = in->key;
        scanner->counts.bare++;
    }
}

/* The entry behind an exit. */
static void close_exit(vtx_exits *scanner, stream *in, const frame *where) {
    vtx_exit *exit = &in->exit;
    exit->flags |= VTX_EXIT_ENTERED;
    if (!where->has_time || !(exit->flags & VTX_EXIT_TIME) || in->ambiguous)
        return;
    if (where->time_ns < exit->time_ns) {
        exit->flags |= VTX_EXIT_BACKWARDS;
        scanner->counts.backwards++;
        return;
    }
    exit->flags |= VTX_EXIT_DURATION;
    exit->duration_ns = where->time_ns - exit->time_ns;
}

/* The exit is over: was it the one before it over again? Without rip nobody can tell. */
static void finish(stream *in, vtx_exit *out) {
    vtx_exit *exit = &in->exit;
    const last_exit *last = &in->last;
    const int address =
        exit->detail_kind == VTX_EVENT_PAGE_FAULT || exit->detail_kind == VTX_EVENT_MMIO;
    const int same = last->line && exit->flags & last->flags & VTX_EXIT_RIP &&
                     exit->reason == last->reason && exit->rip == last->rip &&
                     exit->detail_kind == last->detail_kind &&
                     (address ? exit->detail >> 12 == last->detail >> 12
                              : exit->detail == last->detail);
    exit->repeats = same ? last->repeats + 1 : 0;
    exit->run_line = same ? last->run_line : exit->line;
    *out = *exit;
}

static void add_detail(vtx_exit *exit, enum vtx_exit_event event, const payload *what) {
    if (exit->detail_kind)
        return; /* the first says what the exit was for; later ones are its consequences */
    exit->detail_kind = (uint8_t)event;
    exit->detail = what->detail;
    exit->value = what->value;
    exit->detail_size = what->detail_size;
    exit->flags |= what->flags & (VTX_EXIT_WRITE | VTX_EXIT_FAULTED);
}

static void add_nested(vtx_exit *exit, const frame *where, const payload *what) {
    exit->flags |= VTX_EXIT_L2;
    if (where->event == VTX_EVENT_REFLECTED)
        exit->flags |= VTX_EXIT_REFLECTED;
    else if (!(exit->flags & VTX_EXIT_INFO1) && what->flags & VTX_EXIT_INFO1) {
        exit->info1 = what->info1;
        exit->flags |= VTX_EXIT_INFO1;
    }
}

/* An event between an exit and its entry. */
static void add_to_exit(vtx_exits *scanner, stream *in, const frame *where, const payload *what) {
    vtx_exit *exit = &in->exit;
    switch (where->event) {
    case VTX_EVENT_PAGE_FAULT:
    case VTX_EVENT_MSR:
    case VTX_EVENT_PIO:
    case VTX_EVENT_MMIO:
    case VTX_EVENT_CPUID:
        add_detail(exit, where->event, what);
        break;
    case VTX_EVENT_NESTED:
    case VTX_EVENT_REFLECTED:
        add_nested(exit, where, what);
        break;
    case VTX_EVENT_INJECT:
        exit->flags |= VTX_EXIT_INJECTED;
        exit->vector = (uint16_t)what->vector;
        break;
    case VTX_EVENT_USERSPACE: {
        const int32_t name = intern(scanner, what->name, what->name_length);
        exit->userspace = (uint16_t)(name + 1);
        break;
    }
    default:
        break;
    }
}

static int usable(const frame *where, const payload *what) {
    if (what->state == PAYLOAD_BAD && where->event != VTX_EVENT_ENTRY)
        return 0;
    switch (where->event) {
    case VTX_EVENT_EXIT:
    case VTX_EVENT_XEN_EXIT:
    case VTX_EVENT_NESTED:
    case VTX_EVENT_USERSPACE:
        return (what->has & HAS_REASON) != 0;
    case VTX_EVENT_INJECT:
        return (what->has & HAS_VECTOR) != 0;
    case VTX_EVENT_ENTRY: /* acrntrace names a processor and nothing else */
        return what->has & HAS_SUBJECT || (where->stamp_without_unit && where->cpu != EXITS_NO_CPU);
    case VTX_EVENT_PAGE_FAULT:
    case VTX_EVENT_MSR:
    case VTX_EVENT_PIO:
    case VTX_EVENT_MMIO:
        return (what->has & HAS_SUBJECT) != 0;
    default:
        return 1;
    }
}

static int opens(const vtx_exits *scanner, const frame *where, const stream *in) {
    if (where->event == VTX_EVENT_EXIT || where->event == VTX_EVENT_XEN_EXIT)
        return 1;
    /* A trace of nested exits alone. */
    return where->event == VTX_EVENT_NESTED && !in->open && !scanner->counts.events[VTX_EVENT_EXIT];
}

int stream_event(vtx_exits *scanner, const frame *where, const payload *what, uint64_t line_number,
                 vtx_exit *out, int *used) {
    *used = 0;
    if (!usable(where, what))
        return 0;
    const uint64_t key = key_of(scanner, where, what);
    if (!key) {
        *used = 1; /* a detail of an exit that was not traced */
        return 0;
    }
    stream *in = stream_of(scanner, key);
    if (!in)
        return 0;
    int over = 0;
    if (opens(scanner, where, in)) {
        const int32_t reason = intern(scanner, what->name, what->name_length);
        if (reason < 0)
            return 0;
        over = in->open;
        if (over)
            finish(in, out);
        open_exit(scanner, in, where, what, (uint16_t)reason, line_number);
    } else if (where->event == VTX_EVENT_ENTRY || where->event == VTX_EVENT_XEN_ENTRY) {
        if (what->has & HAS_VCPU) {
            /* Two vCPUs behind one processor, and no thread to tell them apart. */
            if (in->key & by_cpu && in->vcpu >= 0 && in->vcpu != (int32_t)what->vcpu)
                in->ambiguous = 1;
            in->vcpu = (int32_t)what->vcpu;
        }
        over = in->open;
        if (over) {
            close_exit(scanner, in, where);
            if (in->exit.vcpu < 0)
                in->exit.vcpu = in->vcpu;
            finish(in, out);
            in->open = 0;
        }
    } else if (in->open) {
        add_to_exit(scanner, in, where, what);
    }
    *used = 1;
    return over;
}

uint64_t stream_close(vtx_exits *scanner, vtx_exit *out, uint64_t capacity) {
    uint64_t count = 0;
    for (; scanner->close_at < scanner->stream_capacity && count < capacity; scanner->close_at++) {
        stream *in = &scanner->streams[scanner->close_at];
        if (in->used && in->open) {
            in->open = 0;
            finish(in, &out[count++]);
        }
    }
    return count;
}
