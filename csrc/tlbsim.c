/* TLBs of any geometry over a stream of records (kind << 62 | size << 48 | address, see run.c).
 *
 *   a hit in a level touches no later level; a miss fills every level that was looked up;
 *   nothing moves from one level to another, and no level has to include another.
 *
 * Most references find the page that is the most recently used one of its set in the first level.
 * Such a lookup changes nothing, whatever the replacement, so the loop over records only compares
 * (`front`), and counts what it did not pass: hits are what remains of all accesses. */
#include "tlbsim_array.h"

#include <stdlib.h>
#include <string.h>

/* A loop that is worth a second copy for wider vectors, chosen when the program is loaded: only
 * where compiler and loader can. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__) &&        \
    defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define VECTORS __attribute__((target_clones("avx2", "default")))
#else
#define VECTORS
#endif

#define ADDRESS_BITS 0x0000FFFFFFFFFFFFull

enum {
    PIECE = 2048,      /* records that every geometry sees before the next ones: 16 KBytes */
    FRONT_SETS = 1024, /* sets of the first level that the front follows at most */
    SIZE_OF_LEAN = 0 /* 4 KBytes */
};

/* One level as one side sees it. */
typedef struct {
    vtx_sim_slot *slot;
    sim_array *array[3]; /* by size of the page; NULL: this level does not hold it */
    uint8_t stored[3];   /* by size of the page: the size it is kept as */
} sim_level;

/* How the stream meets the first level. */
enum side_mode { SPLIT, TOGETHER, FETCHES, DATA };

/* The pages (in units of 1 << shift bytes) that are the last used ones of their sets in the first
 * level, or (mask 0) the page that was used last of all; UINT64_MAX where there is none. By side,
 * TOGETHER on side 0. */
typedef struct {
    unsigned shift;
    uint64_t mask[2];
    uint64_t pages[2][FRONT_SETS];
} sim_front;

typedef void sim_lean(vtx_sim *sim, uint64_t record);

struct vtx_sim {
    vtx_sim_geometry geometry;
    vtx_sim_counts counts;
    sim_array arrays[VTX_SIM_ARRAYS];
    sim_level levels[2][VTX_SIM_LEVELS];
    unsigned level_count[2];
    uint8_t used[2]; /* the stream's fetches, its data */
    uint8_t mode;    /* enum side_mode */
    uint8_t uniform; /* each side has pages of one size */
    uint8_t size[2]; /* by side, if uniform: of what a TLB holds */
    uint8_t frontal; /* the front may pass what was used last */
    sim_lean *lean[2]; /* by side: NULL, or look_up for this geometry */
    sim_front front;
    sim_walker walker;
};

/* What does not depend on the geometry, found once for a piece of the stream. */
typedef struct {
    const uint64_t *records;
    unsigned count;
    uint64_t kinds[4];
    unsigned crossing_count;
    uint16_t crossings[PIECE]; /* records that reach beyond 4 KBytes, and those of no bytes */
} sim_piece;

static inline uint32_t record_kind(uint64_t record) {
    return (uint32_t)(record >> 62);
}
static inline uint64_t record_size(uint64_t record) {
    return record >> 48 & 0x3FFF;
}
static inline uint64_t record_reaches(uint64_t record) {
    return ((record & 0xFFF) + record_size(record) - 1) & ~0xFFFull;
}

/* ---- Page sizes ----------------------------------------------------------------------------- */

unsigned sim_page_size(const vtx_sim_pages *pages, uint64_t address, unsigned side) {
    uint32_t low = 0;
    uint32_t high = pages->range_count;
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (address >= pages->ranges[middle].stop)
            low = middle + 1;
        else
            high = middle;
    }
    if (low < pages->range_count && address >= pages->ranges[low].start)
        return pages->ranges[low].size;
    return pages->size[side];
}

/* ---- One access ----------------------------------------------------------------------------- */

/* The size of the page that holds an address, as a TLB holds it: the smaller of the guest's page
 * and EPT's. */
static unsigned size_at(const vtx_sim *sim, unsigned side, uint64_t address, unsigned *guest) {
    *guest = sim_page_size(&sim->geometry.guest, address, side);
    if (!sim->geometry.ept_levels)
        return *guest;
    const unsigned ept = sim_page_size(&sim->geometry.ept, address, 1);
    return ept < *guest ? ept : *guest;
}

NOINLINE static void walk(vtx_sim *sim, unsigned side, uint32_t kind, uint64_t address) {
    unsigned guest;
    size_at(sim, side, address, &guest);
    sim->counts.walks[kind]++;
    sim_walk(&sim->walker, address, guest);
}

/* `address` was looked up: it is in the page used last, if that is kept at all. */
static inline void front_note(sim_front *front, unsigned side, uint64_t address, int kept) {
    const uint64_t page = address >> front->shift;
    front->pages[side][page & front->mask[side]] = kept ? page : UINT64_MAX;
}

static inline void look_up(vtx_sim *sim, unsigned side, uint32_t kind, uint64_t address) {
    unsigned guest;
    const unsigned size = sim->uniform ? sim->size[side] : size_at(sim, side, address, &guest);
    const sim_level *level = sim->levels[side];
    front_note(&sim->front, sim->mode == TOGETHER ? 0 : side, address,
               sim->frontal && level->array[size]);
    for (unsigned i = sim->level_count[side]; i; i--, level++) {
        sim_array *array = level->array[size];
        const unsigned stored = level->stored[size];
        if (array && sim_array_touch(array, address >> sim_shift[stored], stored)) {
            level->slot->hits[kind]++;
            return;
        }
        level->slot->misses[kind]++;
    }
    walk(sim, side, kind, address);
}

/* look_up in 4-KByte pages over two levels of true LRU with short tags, where the set is
 * the low bits of the page number: the usual geometries, with their ways as constants. */
INLINE void look_up_lean(vtx_sim *sim, uint64_t record, unsigned ways1, unsigned ways2) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    const sim_level *levels = sim->levels[side];
    sim_array *one = levels[0].array[SIZE_OF_LEAN], *two = levels[1].array[SIZE_OF_LEAN];
    const uint64_t page = (record & ADDRESS_BITS) >> 12;
    const uint64_t set1 = page & one->set_mask;
    const uint32_t tag1 = (uint32_t)(page >> one->tag_shift);
    const uint32_t tag2 = (uint32_t)(page >> two->tag_shift);
    if (tag1 == SIM_EMPTY_NARROW || tag2 == SIM_EMPTY_NARROW) {
        sim->lean[0] = sim->lean[1] = NULL; /* an array is about to widen its tags */
        look_up(sim, side, kind, record & ADDRESS_BITS);
        return;
    }
    sim_front *front = &sim->front;
    const unsigned of = sim->mode == TOGETHER ? 0 : side;
    front->pages[of][page & front->mask[of]] = page;
    if (lru_narrow((uint32_t *)one->tags + set1 * ways1, tag1, ways1))
        return;
    levels[0].slot->misses[kind]++;
    const uint64_t set2 = page & two->set_mask;
    if (lru_narrow((uint32_t *)two->tags + set2 * ways2, tag2, ways2)) {
        levels[1].slot->hits[kind]++;
        return;
    }
    levels[1].slot->misses[kind]++;
    walk(sim, side, kind, record & ADDRESS_BITS);
}

#define LEAN(WAYS1, WAYS2)                                                                         \
    NOINLINE static void lean_##WAYS1##_##WAYS2(vtx_sim *sim, uint64_t record) {                   \
        look_up_lean(sim, record, WAYS1, WAYS2);                                                   \
    }

LEAN(4, 4)
LEAN(4, 8)
LEAN(4, 12)
LEAN(4, 16)
LEAN(8, 4)
LEAN(8, 8)
LEAN(8, 12)
LEAN(8, 16)

static sim_lean *const leans[2][4] = {{lean_4_4, lean_4_8, lean_4_12, lean_4_16},
                                      {lean_8_4, lean_8_8, lean_8_12, lean_8_16}};

static int is_lean(const sim_array *array) {
    return array && array->body >= BODY_LRU_NARROW_4 && array->body <= BODY_LRU_NARROW_16 &&
           array->power_of_two && array->index == VTX_SIM_MODULO && !array->size_bits;
}

static void set_lean(vtx_sim *sim) {
    if (!sim->uniform || sim->size[0] != SIZE_OF_LEAN || sim->size[1] != SIZE_OF_LEAN)
        return;
    for (unsigned side = 0; side < 2; side++) {
        const sim_array *one = sim->levels[side][0].array[SIZE_OF_LEAN];
        const sim_array *two = sim->levels[side][1].array[SIZE_OF_LEAN];
        if (sim->level_count[side] == 2 && is_lean(one) && is_lean(two) && one->ways <= 8)
            sim->lean[side] = leans[one->ways / 8][two->ways / 4 - 1];
    }
}

/* A reference that reaches beyond 4 KBytes, or is a modify that counts twice. */
NOINLINE static void refer_long(vtx_sim *sim, uint64_t record) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    const uint64_t address = record & ADDRESS_BITS;
    const uint64_t bytes = record_size(record);
    const uint64_t last = (address + (bytes ? bytes - 1 : 0)) & ADDRESS_BITS;
    unsigned guest;
    const unsigned shift = sim_shift[size_at(sim, side, address, &guest)];
    const int crosses = address >> shift != last >> shift;
    const int both = crosses && !(sim->geometry.flags & VTX_SIM_FIRST_PAGE);
    const int twice = kind == VTX_MODIFY && (sim->geometry.flags & VTX_SIM_MODIFY_TWICE);
    for (int i = 0; i <= twice; i++) {
        look_up(sim, side, kind, address);
        if (both)
            look_up(sim, side, kind, last);
    }
    sim->counts.crossings += (uint64_t)crosses;
    sim->counts.accesses[kind] += (uint64_t)both << twice; /* beyond one a record */
}

/* A record that the front does not pass. The front is not asked again for a second lookup: looking
 * up what it would have passed changes nothing. */
NOINLINE static void refer(vtx_sim *sim, uint64_t record) {
    const uint32_t kind = record_kind(record);
    const unsigned side = kind != VTX_FETCH;
    if (!sim->used[side])
        return;
    const int twice = kind == VTX_MODIFY && (sim->geometry.flags & VTX_SIM_MODIFY_TWICE);
    if (record_reaches(record) || twice)
        refer_long(sim, record);
    else if (sim->lean[side])
        sim->lean[side](sim, record);
    else
        look_up(sim, side, kind, record & ADDRESS_BITS);
}

/* ---- The loop over records ------------------------------------------------------------------ */

/* 0 if the page of this record is the last used one of its set, or its kind is not used. */
INLINE uint64_t stops(const sim_front *front, uint64_t record, enum side_mode mode,
                      unsigned shift) {
    const uint64_t data = record >= 1ull << 62;
    const uint64_t side = mode == SPLIT ? data : mode == DATA;
    const uint64_t page = record << 16 >> (16 + shift);
    const uint64_t other = front->pages[side][record >> shift & front->mask[side]] ^ page;
    if (mode == FETCHES)
        return other & (data - 1);
    if (mode == DATA)
        return other & (0 - data);
    return other;
}

INLINE void run_stretch(vtx_sim *sim, const uint64_t *records, unsigned i, unsigned stop,
                        enum side_mode mode, unsigned shift) {
    const sim_front *front = &sim->front;
    for (; i + 4 <= stop; i += 4) {
        const uint64_t *r = records + i;
        if ((stops(front, r[0], mode, shift) | stops(front, r[1], mode, shift) |
             stops(front, r[2], mode, shift) | stops(front, r[3], mode, shift)) == 0)
            continue;
        for (unsigned k = 0; k < 4; k++)
            if (stops(front, r[k], mode, shift))
                refer(sim, r[k]);
    }
    for (; i < stop; i++)
        if (stops(front, records[i], mode, shift))
            refer(sim, records[i]);
}

/* The stretches between references that reach beyond 4 KBytes. */
INLINE void run_piece(vtx_sim *sim, const sim_piece *piece, enum side_mode mode, unsigned shift) {
    unsigned start = 0;
    for (unsigned i = 0; i < piece->crossing_count; i++) {
        const unsigned crossing = piece->crossings[i];
        run_stretch(sim, piece->records, start, crossing, mode, shift);
        refer(sim, piece->records[crossing]);
        start = crossing + 1;
    }
    run_stretch(sim, piece->records, start, piece->count, mode, shift);
}

#define RUN(MODE)                                                                                  \
    if (sim->front.shift == 12)                                                                    \
        run_piece(sim, piece, MODE, 12);                                                           \
    else                                                                                           \
        run_piece(sim, piece, MODE, sim->front.shift);                                             \
    break

static void run(vtx_sim *sim, const sim_piece *piece) {
    for (unsigned kind = 0; kind < 4; kind++)
        sim->counts.records[kind] += piece->kinds[kind];
    switch ((enum side_mode)sim->mode) {
    case SPLIT: RUN(SPLIT);
    case TOGETHER: RUN(TOGETHER);
    case FETCHES: RUN(FETCHES);
    case DATA: RUN(DATA);
    }
}

/* What a block of records adds up to, in a loop that compilers make vectors of. */
typedef struct {
    uint64_t high, kinds, both; /* sums of bit 63, of the kinds, of bits 63 and 62 together */
    uint64_t reach;             /* bits 12 and up: a record reaches beyond 4 KBytes */
} block_sums;

INLINE block_sums add_up(const uint64_t *records, unsigned count) {
    block_sums sums = {0, 0, 0, 0};
    for (unsigned i = 0; i < count; i++) {
        const uint64_t record = records[i];
        sums.high += record >> 63;
        sums.kinds += record >> 62;
        sums.both += (record & record << 1) >> 63;
        sums.reach |= (record & 0xFFF) + record_size(record) - 1;
    }
    return sums;
}

enum { BLOCK = 64 };

/* Count kinds, and find the records that reach beyond 4 KBytes. */
VECTORS static void look_over(sim_piece *piece) {
    const uint64_t *records = piece->records;
    uint64_t high = 0, kinds = 0, both = 0;
    piece->crossing_count = 0;
    for (unsigned i = 0; i < piece->count; i += BLOCK) {
        const unsigned count = piece->count - i < BLOCK ? piece->count - i : BLOCK;
        const block_sums sums =
            count == BLOCK ? add_up(records + i, BLOCK) : add_up(records + i, count);
        high += sums.high;
        kinds += sums.kinds;
        both += sums.both;
        for (unsigned k = i; sums.reach > 0xFFF && k < i + count; k++)
            if (record_reaches(records[k]))
                piece->crossings[piece->crossing_count++] = (uint16_t)k;
    }
    const uint64_t low = kinds - 2 * high;
    piece->kinds[VTX_MODIFY] = both;
    piece->kinds[VTX_STORE] = high - both;
    piece->kinds[VTX_LOAD] = low - both;
    piece->kinds[VTX_FETCH] = piece->count - high - low + both;
}

int vtx_sim_run(vtx_sim *const *sims, uint64_t sim_count, const uint64_t *records,
                uint64_t count) {
    sim_piece piece;
    for (uint64_t i = 0; i < count; i += PIECE) {
        piece.records = records + i;
        piece.count = (unsigned)(count - i < PIECE ? count - i : PIECE);
        look_over(&piece);
        for (uint64_t s = 0; s < sim_count; s++) {
            run(sims[s], &piece);
            if (sims[s]->walker.failed)
                return 0;
        }
    }
    return 1;
}

uint64_t vtx_sim_least(const uint64_t *records, uint64_t count, uint64_t kinds[4]) {
    uint64_t last[2][16] = {{0}};
    uint64_t misses = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t kind = record_kind(records[i]);
        const uint64_t page = (records[i] & ADDRESS_BITS) >> 12;
        uint64_t *known = &last[kind != VTX_FETCH][page & 15];
        kinds[kind]++;
        if (*known != page) {
            *known = page;
            misses++;
        }
    }
    return misses;
}

/* ---- Counts --------------------------------------------------------------------------------- */

void vtx_sim_counted(const vtx_sim *sim, vtx_sim_counts *out) {
    *out = sim->counts;
    const int twice = (sim->geometry.flags & VTX_SIM_MODIFY_TWICE) != 0;
    for (unsigned kind = 0; kind < 4; kind++) {
        const unsigned side = kind != VTX_FETCH;
        if (!sim->used[side]) {
            out->accesses[kind] = 0;
            continue;
        }
        out->accesses[kind] += out->records[kind] << (kind == VTX_MODIFY && twice);
        vtx_sim_slot *first = &out->slots[sim->levels[side][0].slot - sim->counts.slots];
        first->hits[kind] = out->accesses[kind] - first->misses[kind];
    }
}

/* ---- A geometry ----------------------------------------------------------------------------- */

static const char *array_error(const vtx_sim_array *array) {
    if (array->level < 1 || array->level > VTX_SIM_LEVELS)
        return "a TLB level is 1 to 4";
    if (array->slot >= VTX_SIM_SLOTS)
        return "there can be at most 16 levels";
    if (!array->sides || array->sides > 3)
        return "a TLB serves instruction fetches, data or both";
    if (!array->pages || array->pages > 7)
        return "a TLB holds pages of 4K, 2M or 1G";
    if (array->replacement > VTX_SIM_RANDOM || array->index > VTX_SIM_XOR)
        return "an unknown replacement or index";
    if (!array->sets || array->sets > 1u << 24)
        return "a TLB has 1 to 16777216 sets";
    if (!array->ways || array->ways > VTX_SIM_WAYS)
        return "a set has 1 to 4096 ways";
    if ((uint64_t)array->sets * array->ways > 1u << 24)
        return "a TLB has at most 16777216 entries";
    if (array->index == VTX_SIM_XOR && (array->sets & (array->sets - 1)))
        return "with the index xor the number of sets must be a power of two";
    if (array->replacement == VTX_SIM_TREE_PLRU && (array->ways & (array->ways - 1)))
        return "with tree-PLRU the number of ways must be a power of two";
    return NULL;
}

static const char *pages_error(const vtx_sim_pages *pages) {
    if (pages->size[0] > 2 || pages->size[1] > 2 || pages->range_count > VTX_SIM_RANGES)
        return "pages have 4K, 2M or 1G, and at most 64 ranges of their own";
    uint64_t end = 0;
    for (uint32_t i = 0; i < pages->range_count; i++) {
        const vtx_sim_range *range = &pages->ranges[i];
        if (range->size > 2 || range->start < end || range->stop <= range->start)
            return "ranges of pages must be in ascending order, apart, and not empty";
        end = range->stop;
    }
    return NULL;
}

static const char *walk_error(const vtx_sim_geometry *geometry) {
    if (geometry->guest_levels < 4 || geometry->guest_levels > 5)
        return "paging has 4 or 5 levels";
    if (geometry->ept_levels && (geometry->ept_levels < 4 || geometry->ept_levels > 5))
        return "EPT has 4 or 5 levels";
    if (geometry->nested > VTX_SIM_WAYS)
        return "a cache of a walker has at most 4096 entries";
    for (unsigned level = 0; level < 6; level++)
        if (geometry->guest_cache[level] > VTX_SIM_WAYS || geometry->ept_cache[level] > VTX_SIM_WAYS)
            return "a cache of a walker has at most 4096 entries";
    return NULL;
}

/* Arrays of one level and side must not contradict each other; first levels must be there. */
static const char *side_error(const vtx_sim_geometry *geometry, unsigned side) {
    uint32_t slots[VTX_SIM_LEVELS + 1] = {0};
    uint32_t pages[VTX_SIM_LEVELS + 1] = {0};
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        const vtx_sim_array *array = &geometry->arrays[i];
        if (!(array->sides >> side & 1))
            continue;
        if (pages[array->level] && slots[array->level] != array->slot)
            return "a side has two TLBs on one level that count apart";
        if (pages[array->level] & array->pages)
            return "two arrays of one level hold pages of the same size";
        slots[array->level] = array->slot;
        pages[array->level] |= array->pages;
    }
    if (!(geometry->flags >> side & 1))
        return NULL;
    for (unsigned level = 2; level <= VTX_SIM_LEVELS; level++)
        if (pages[level] && !pages[level - 1])
            return "a level is missing below another";
    if (!pages[1])
        return side ? "data has no first-level TLB" : "instruction fetches have no first-level TLB";
    return NULL;
}

/* One name, one level: all arrays that count together serve the same sides of the same level. */
static const char *slot_error(const vtx_sim_geometry *geometry) {
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        for (uint32_t j = 0; j < i; j++) {
            const vtx_sim_array *a = &geometry->arrays[i];
            const vtx_sim_array *b = &geometry->arrays[j];
            if (a->slot == b->slot && (a->level != b->level || a->sides != b->sides))
                return "arrays of different levels or sides count together";
        }
    }
    return NULL;
}

const char *vtx_sim_error(const vtx_sim_geometry *geometry) {
    if (geometry->array_count > VTX_SIM_ARRAYS)
        return "there can be at most 32 arrays";
    if (!(geometry->flags & (VTX_SIM_FETCHES | VTX_SIM_DATA)))
        return "the stream is neither fetches nor data";
    const char *error = NULL;
    for (uint32_t i = 0; i < geometry->array_count && !error; i++)
        error = array_error(&geometry->arrays[i]);
    if (!error)
        error = slot_error(geometry);
    for (unsigned side = 0; side < 2 && !error; side++)
        error = side_error(geometry, side);
    if (!error)
        error = pages_error(&geometry->guest);
    if (!error)
        error = pages_error(&geometry->ept);
    return error ? error : walk_error(geometry);
}

/* A level that lacks a size keeps such pages in parts of the next smaller size it has. */
static void set_stored(sim_level *level) {
    for (unsigned size = 0; size < 3; size++) {
        level->stored[size] = (uint8_t)size;
        if (!level->array[size] && size && level->array[size - 1]) {
            level->array[size] = level->array[size - 1];
            level->stored[size] = level->stored[size - 1];
        }
    }
}

static void set_levels(vtx_sim *sim) {
    for (uint32_t i = 0; i < sim->geometry.array_count; i++) {
        const vtx_sim_array *array = &sim->geometry.arrays[i];
        for (unsigned side = 0; side < 2; side++) {
            if (!(array->sides >> side & 1))
                continue;
            sim_level *level = &sim->levels[side][array->level - 1];
            level->slot = &sim->counts.slots[array->slot];
            for (unsigned size = 0; size < 3; size++)
                if (array->pages >> size & 1)
                    level->array[size] = &sim->arrays[i];
            if (array->level > sim->level_count[side])
                sim->level_count[side] = array->level;
        }
    }
    for (unsigned side = 0; side < 2; side++)
        for (unsigned level = 0; level < VTX_SIM_LEVELS; level++)
            set_stored(&sim->levels[side][level]);
}

static void set_mode(vtx_sim *sim) {
    sim->used[0] = (sim->geometry.flags & VTX_SIM_FETCHES) != 0;
    sim->used[1] = (sim->geometry.flags & VTX_SIM_DATA) != 0;
    const int shared = sim->levels[0][0].slot == sim->levels[1][0].slot;
    sim->mode = !sim->used[1] ? FETCHES : !sim->used[0] ? DATA : shared ? TOGETHER : SPLIT;
    const vtx_sim_pages *ept = &sim->geometry.ept;
    sim->uniform = !sim->geometry.guest.range_count &&
                   !(sim->geometry.ept_levels && ept->range_count);
    for (unsigned side = 0; side < 2; side++) {
        unsigned guest;
        sim->size[side] = (uint8_t)size_at(sim, side, 0, &guest);
    }
}

/* All pages of the stream have one size, which the first level keeps them as (or not at all). */
static int front_is_plain(const vtx_sim *sim) {
    const unsigned size = sim->size[0];
    return sim->uniform && sim->size[1] == size && sim->levels[0][0].stored[size] == size &&
           sim->levels[1][0].stored[size] == size;
}

/* The front follows each set of the first level if the set is the low bits of the page number;
 * otherwise it knows the page used last alone. */
static void set_front(vtx_sim *sim) {
    sim_front *front = &sim->front;
    const int plain = front_is_plain(sim);
    front->shift = plain ? sim_shift[sim->size[0]] : 12;
    for (unsigned side = 0; side < 2; side++) {
        const sim_array *array = sim->levels[side][0].array[sim->size[side]];
        if (plain && array && array->index == VTX_SIM_MODULO && array->power_of_two &&
            array->sets <= FRONT_SETS)
            front->mask[side] = array->set_mask;
    }
    /* If fetches and data hold one address as pages of two sizes, a page of one is none of the
     * other. */
    const vtx_sim_pages *guest = &sim->geometry.guest;
    sim->frontal = sim->mode != TOGETHER || guest->size[0] == guest->size[1];
    memset(front->pages, 0xFF, sizeof front->pages);
}

vtx_sim *vtx_sim_new(const vtx_sim_geometry *geometry) {
    if (vtx_sim_error(geometry))
        return NULL;
    vtx_sim *sim = calloc(1, sizeof *sim);
    if (!sim)
        return NULL;
    sim->geometry = *geometry;
    set_levels(sim);
    int ok = 1;
    set_mode(sim);
    for (uint32_t i = 0; i < geometry->array_count; i++) {
        vtx_sim_array like = geometry->arrays[i];
        if (sim->uniform && sim->size[0] == sim->size[1] && (like.pages >> sim->size[0] & 1))
            like.pages = 1u << sim->size[0]; /* no other size will come: shorter tags */
        ok &= sim_array_init(&sim->arrays[i], &like);
    }
    ok &= sim_walker_init(&sim->walker, &sim->geometry, &sim->counts);
    if (!ok) {
        vtx_sim_free(sim);
        return NULL;
    }
    set_front(sim);
    set_lean(sim);
    return sim;
}

void vtx_sim_free(vtx_sim *sim) {
    if (!sim)
        return;
    for (uint32_t i = 0; i < VTX_SIM_ARRAYS; i++)
        sim_array_free(&sim->arrays[i]);
    sim_walker_free(&sim->walker);
    free(sim);
}
