/* A set of durations with their counts. Few different ones are kept as they are, so percentiles are
 * exact; beyond a limit the set keeps only the leading bits of each, as many as fit: what is left is
 * the middle of the durations that share them, at most 2^-bits of a duration away. */
#include "exits_durations.h"

#include <stdlib.h>

enum { FIRST_CAPACITY = 8, FIRST_BITS = 20 };

static uint64_t rounded(uint64_t duration, uint32_t bits) {
    uint32_t shift = 0;
    if (bits == DURATIONS_EXACT)
        return duration;
    for (uint64_t left = duration >> bits; left; left >>= 1)
        shift++;
    return shift ? (duration >> shift << shift) + (UINT64_C(1) << (shift - 1)) : duration;
}

static uint32_t slot_of(const durations *set, uint64_t value) {
    uint64_t hash = value * UINT64_C(0x9e3779b97f4a7c15);
    uint32_t at = (uint32_t)(hash ^ hash >> 32) & (set->capacity - 1);
    while (set->values[at] && set->values[at] != value)
        at = (at + 1) & (set->capacity - 1);
    return at;
}

static void put(durations *set, uint64_t duration, uint64_t count) {
    const uint64_t value = rounded(duration, set->bits) + 1;
    const uint32_t at = slot_of(set, value);
    if (!set->values[at]) {
        set->values[at] = value;
        set->used++;
    }
    set->counts[at] += count;
}

/* The same set in other tables, perhaps with fewer bits. */
static int rebuild(durations *set, uint32_t capacity, uint32_t bits) {
    durations built = {calloc(capacity, sizeof *built.values), calloc(capacity, sizeof *built.counts),
                       capacity, 0, bits};
    if (!built.values || !built.counts) {
        durations_free(&built);
        return 0;
    }
    for (uint32_t i = 0; i < set->capacity; i++)
        if (set->values[i])
            put(&built, set->values[i] - 1, set->counts[i]);
    durations_free(set);
    *set = built;
    return 1;
}

int durations_coarsen(durations *set, uint32_t limit) {
    while (set->used > limit && set->bits > 1) {
        const uint32_t bits = set->bits == DURATIONS_EXACT ? FIRST_BITS : set->bits - 1;
        if (!rebuild(set, set->capacity, bits))
            return 0;
    }
    uint32_t capacity = set->capacity;
    while (capacity > FIRST_CAPACITY && capacity / 4 > set->used)
        capacity /= 2;
    return capacity == set->capacity || rebuild(set, capacity, set->bits);
}

int durations_add(durations *set, uint64_t duration, uint64_t count, uint32_t limit) {
    if (!set->capacity)
        set->bits = DURATIONS_EXACT;
    if (set->used * 2 >= set->capacity) {
        if (set->used >= limit && set->bits > 1) {
            if (!durations_coarsen(set, limit / 2))
                return 0;
        } else if (!rebuild(set, set->capacity ? set->capacity * 2 : FIRST_CAPACITY, set->bits)) {
            return 0;
        }
    }
    put(set, duration, count);
    return 1;
}

void durations_free(durations *set) {
    free(set->values);
    free(set->counts);
    set->values = set->counts = NULL;
    set->capacity = set->used = 0;
}
