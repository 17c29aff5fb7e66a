/* What exits come to: tallies by reason, by what the exit was about, by vCPU and by slice of time.
 * Memory is bounded by limits on the tallies and on the durations that each keeps apart. */
#include "exits_durations.h"

#include <stdlib.h>
#include <string.h>

enum {
    MOST_DETAILS = 1 << 16,
    ROW_LIMIT = 1 << 16,   /* different durations of a reason that are kept apart */
    PART_LIMIT = 1 << 12,  /* of anything else, while memory lasts */
    LEAST_LIMIT = 1 << 6,
    MOST_SLOTS = 1 << 22,  /* of all sets of the parts together */
    NO_VCPU = -1
};

typedef struct {
    vtx_tally_entry sums;
    durations times;
} tally;

typedef struct {
    tally *entries;
    uint32_t *slots; /* index + 1 */
    uint64_t count, capacity, slot_count;
} table;

struct vtx_tally {
    vtx_tally_summary summary;
    table tables[VTX_TALLY_TABLES];
    uint64_t slice_ns, part_slots;
    uint32_t part_limit;
    int per_vcpu;
};

vtx_tally *vtx_tally_new(uint64_t slice_ns, int per_vcpu) {
    vtx_tally *all = calloc(1, sizeof *all);
    if (all) {
        all->slice_ns = slice_ns;
        all->per_vcpu = per_vcpu;
        all->part_limit = PART_LIMIT;
        all->summary.first_ns = UINT64_MAX;
    }
    return all;
}

void vtx_tally_free(vtx_tally *all) {
    if (!all)
        return;
    for (int t = 0; t < VTX_TALLY_TABLES; t++) {
        for (uint64_t i = 0; i < all->tables[t].count; i++)
            durations_free(&all->tables[t].entries[i].times);
        free(all->tables[t].entries);
        free(all->tables[t].slots);
    }
    free(all);
}

const vtx_tally_summary *vtx_tally_summarised(const vtx_tally *all) { return &all->summary; }

uint64_t vtx_tally_count(const vtx_tally *all, uint32_t which) {
    return which < VTX_TALLY_TABLES ? all->tables[which].count : 0;
}

int vtx_tally_at(const vtx_tally *all, uint32_t which, uint64_t index, vtx_tally_entry *out) {
    if (index >= vtx_tally_count(all, which))
        return 0;
    *out = all->tables[which].entries[index].sums;
    return 1;
}

/* ---- Tables ---------------------------------------------------------------------------------- */

static uint64_t hashed(uint64_t key, uint64_t part) {
    uint64_t hash = (key ^ (part << 52 | part >> 12)) * UINT64_C(0x9e3779b97f4a7c15);
    return hash ^ hash >> 32;
}

static uint32_t *slot_of(const table *in, uint64_t key, uint64_t part) {
    uint64_t at = hashed(key, part) & (in->slot_count - 1);
    for (; in->slots[at]; at = (at + 1) & (in->slot_count - 1)) {
        const vtx_tally_entry *known = &in->entries[in->slots[at] - 1].sums;
        if (known->key == key && known->part == part)
            break;
    }
    return &in->slots[at];
}

static int grow(table *in) {
    const uint64_t capacity = in->capacity ? in->capacity * 2 : 64;
    tally *entries = realloc(in->entries, capacity * sizeof *entries);
    if (!entries)
        return 0;
    in->entries = entries;
    in->capacity = capacity;
    free(in->slots);
    in->slot_count = capacity * 2;
    in->slots = calloc(in->slot_count, sizeof *in->slots);
    if (!in->slots)
        return 0;
    for (uint64_t i = 0; i < in->count; i++)
        *slot_of(in, entries[i].sums.key, entries[i].sums.part) = (uint32_t)(i + 1);
    return 1;
}

/* The tally of a key, made on first use; NULL if memory is short. */
static tally *tally_of(table *in, uint64_t key, uint64_t part) {
    if (in->count == in->capacity && !grow(in))
        return NULL;
    uint32_t *slot = slot_of(in, key, part);
    if (!*slot) {
        tally *made = &in->entries[in->count++];
        memset(made, 0, sizeof *made);
        made->sums.key = key;
        made->sums.part = part;
        made->sums.least = UINT64_MAX;
        made->sums.vcpu = NO_VCPU;
        *slot = (uint32_t)in->count;
    }
    return &in->entries[*slot - 1];
}

/* ---- One exit -------------------------------------------------------------------------------- */

static int add_one(vtx_tally *all, uint32_t which, tally *to, const vtx_exit *exit) {
    vtx_tally_entry *sums = &to->sums;
    sums->samples++;
    if (exit->vcpu >= 0)
        sums->vcpu = exit->vcpu;
    if (!(exit->flags & VTX_EXIT_DURATION))
        return 1;
    const uint64_t duration = exit->duration_ns;
    const double away = (double)duration - sums->mean;
    sums->timed++;
    sums->total += duration;
    sums->mean += away / (double)sums->timed;
    sums->squares += away * ((double)duration - sums->mean);
    if (duration < sums->least)
        sums->least = duration;
    if (duration > sums->most)
        sums->most = duration;
    const uint32_t before = to->times.capacity;
    const int done = durations_add(&to->times, duration, 1,
                                   which == VTX_TALLY_ROWS ? ROW_LIMIT : all->part_limit);
    if (which != VTX_TALLY_ROWS)
        all->part_slots += (uint64_t)to->times.capacity - before;
    return done;
}

static int add_to(vtx_tally *all, uint32_t which, uint64_t key, uint64_t part,
                  const vtx_exit *exit) {
    tally *to = tally_of(&all->tables[which], key, part);
    return to && add_one(all, which, to, exit);
}

static int add_detail(vtx_tally *all, uint64_t row, uint32_t subject, const vtx_exit *exit) {
    const uint64_t level = (exit->flags & VTX_EXIT_L2) != 0;
    table *in = &all->tables[VTX_TALLY_DETAILS];
    uint64_t part = vtx_exit_subject_of(exit, subject) | level;
    if (in->count >= MOST_DETAILS && !*slot_of(in, row, part))
        part = VTX_SUBJECT_OTHERS | level;
    return add_to(all, VTX_TALLY_DETAILS, row, part, exit);
}

static int add_time(vtx_tally *all, uint64_t row, const vtx_exit *exit) {
    vtx_tally_summary *summary = &all->summary;
    if (!(exit->flags & VTX_EXIT_TIME))
        return 1;
    if (exit->time_ns < summary->first_ns)
        summary->first_ns = exit->time_ns;
    if (exit->time_ns > summary->last_ns)
        summary->last_ns = exit->time_ns;
    return !all->slice_ns ||
           add_to(all, VTX_TALLY_SLICES, exit->time_ns / all->slice_ns, row, exit);
}

/* A thread is one vCPU; the number matters where no thread is known, and for Xen's domains. */
static int add_vcpu(vtx_tally *all, uint64_t row, int xen, const vtx_exit *exit) {
    uint64_t who = (uint64_t)exit->tid << 32;
    if (xen || !exit->tid)
        who |= (uint32_t)exit->vcpu;
    return add_to(all, VTX_TALLY_VCPUS, who, row, exit);
}

/* The sets of the parts have grown too large together: each keeps less. */
static int relieve(vtx_tally *all) {
    while (all->part_slots > MOST_SLOTS && all->part_limit > LEAST_LIMIT) {
        all->part_limit /= 2;
        all->part_slots = 0;
        for (int t = 0; t < VTX_TALLY_TABLES; t++) {
            table *in = &all->tables[t];
            for (uint64_t i = 0; t != VTX_TALLY_ROWS && i < in->count; i++) {
                if (!durations_coarsen(&in->entries[i].times, all->part_limit))
                    return 0;
                all->part_slots += in->entries[i].times.capacity;
            }
        }
    }
    return 1;
}

int vtx_tally_add(vtx_tally *all, const vtx_exit *exits, uint64_t count, const uint16_t *rows,
                  const uint8_t *subjects, int xen) {
    for (uint64_t i = 0; i < count; i++) {
        const vtx_exit *exit = &exits[i];
        const uint64_t row = rows[exit->reason];
        all->summary.flags |= exit->flags;
        if (!add_to(all, VTX_TALLY_ROWS, row, 0, exit) ||
            !add_detail(all, row, subjects[exit->reason], exit) || !add_time(all, row, exit) ||
            (all->per_vcpu && !add_vcpu(all, row, xen, exit)))
            return 0;
    }
    all->summary.samples += count;
    return relieve(all);
}

/* ---- Percentiles ------------------------------------------------------------------------------- */

typedef struct {
    uint64_t value, count;
} counted;

static int by_value(const void *a, const void *b) {
    const uint64_t x = ((const counted *)a)->value, y = ((const counted *)b)->value;
    return (x > y) - (x < y);
}

static int merge(const vtx_tally *all, uint32_t which, const uint64_t *indices, uint64_t count,
                 durations *whole) {
    for (uint64_t i = 0; i < count; i++) {
        if (indices[i] >= all->tables[which].count)
            return 0;
        const durations *times = &all->tables[which].entries[indices[i]].times;
        if (!times->capacity)
            continue;
        if (!whole->capacity && !durations_add(whole, 0, 0, ROW_LIMIT))
            return 0;
        if (times->bits < whole->bits)
            whole->bits = times->bits;
        for (uint32_t at = 0; at < times->capacity; at++)
            if (times->values[at] &&
                !durations_add(whole, times->values[at] - 1, times->counts[at], ROW_LIMIT))
                return 0;
    }
    return 1;
}

static void rank(const counted *sorted, uint64_t used, const uint32_t *percents, uint64_t wanted,
                 uint64_t *out) {
    uint64_t all = 0;
    for (uint64_t i = 0; i < used; i++)
        all += sorted[i].count;
    for (uint64_t p = 0; p < wanted; p++) {
        const uint64_t whole = all / 100 * percents[p], rest = all % 100 * percents[p];
        uint64_t left = whole + (rest + 99) / 100, i = 0;
        left += !left;
        while (i + 1 < used && sorted[i].count < left)
            left -= sorted[i++].count;
        out[p] = sorted[i].value;
    }
}

int vtx_tally_percentiles(const vtx_tally *all, uint32_t which, const uint64_t *indices,
                          uint64_t count, const uint32_t *percents, uint64_t wanted, uint64_t *out,
                          uint32_t *bits) {
    durations whole = {NULL, NULL, 0, 0, DURATIONS_EXACT};
    counted *sorted = NULL;
    int done = which < VTX_TALLY_TABLES && merge(all, which, indices, count, &whole);
    if (done && whole.used && !(sorted = malloc(whole.used * sizeof *sorted)))
        done = 0;
    if (sorted) {
        uint64_t used = 0;
        for (uint32_t at = 0; at < whole.capacity; at++)
            if (whole.values[at] && whole.counts[at])
                sorted[used++] = (counted){whole.values[at] - 1, whole.counts[at]};
        qsort(sorted, used, sizeof *sorted, by_value);
        if (used)
            rank(sorted, used, percents, wanted, out);
        done = used ? 2 : 1;
    }
    *bits = whole.bits;
    free(sorted);
    durations_free(&whole);
    return done;
}

int vtx_tally_below(const vtx_tally *all, uint32_t which, uint64_t index, uint64_t limit,
                    uint64_t *count, uint64_t *total) {
    *count = *total = 0;
    if (index >= vtx_tally_count(all, which))
        return 0;
    const durations *times = &all->tables[which].entries[index].times;
    for (uint32_t at = 0; at < times->capacity; at++)
        if (times->values[at] && times->values[at] - 1 < limit) {
            *count += times->counts[at];
            *total += times->counts[at] * (times->values[at] - 1);
        }
    return 1;
}
