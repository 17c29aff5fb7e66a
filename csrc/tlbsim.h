/* TLBs of any geometry over a stream of records (kind << 62 | size << 48 | address, see run.c): what
 * the files of this name share.
 *
 * A TLB here is a set of tags: no frames, no rights, no invalidations, no faults. That is what
 * makes it several times as fast as the MMU's run loop, and free in its geometry.
 *
 *   a hit in a level touches no later level; a miss fills every level that was looked up;
 *   nothing moves from one level to another, and no level has to include another.
 *
 * Most references find the page that is the most recently used one of its set in the first level.
 * Such a lookup changes nothing, whatever the replacement, so a loop over records only compares
 * (tlbsim_loop.c, tlbsim_avx*.c) and counts what it did not pass: hits are what remains of all
 * accesses. Where few are passed, records are looked up one by one (tlbsim_lean.c). */
#ifndef VTX_TLBSIM_H
#define VTX_TLBSIM_H

#include "core.h"

/* A body that is to be made anew for every set of constant arguments. */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Loops for one kind of processor, chosen when a geometry is made. */
#if defined(__GNUC__) && defined(__x86_64__)
#define SIM_AVX2 __attribute__((target("avx2,bmi")))
#define SIM_AVX512 __attribute__((target("avx2,bmi,avx512f,avx512bw,avx512vl")))
#endif

static const uint8_t sim_shift[3] = {12, 21, 30};

/* ---- Arrays --------------------------------------------------------------------------------- */

/* How an array is searched: by replacement, width of its tags, and ways. */
enum sim_body {
    BODY_LRU_LONG, /* many ways: search and move */
    BODY_LRU_1,
    BODY_LRU_2,
    BODY_LRU_3,
    BODY_LRU_4,
    BODY_LRU_5,
    BODY_LRU_6,
    BODY_LRU_8,
    BODY_LRU_12,
    BODY_LRU_16,
    BODY_LRU_NARROW_4, /* 32-bit tags */
    BODY_LRU_NARROW_8,
    BODY_LRU_NARROW_12,
    BODY_LRU_NARROW_16,
    BODY_TREE_PLRU,
    BODY_RANDOM
};

/* Tags of a set lie next to each other, for LRU from most to least recently used. A tag is what the
 * set leaves open of the page number (tag_shift is at most the base-2 logarithm of the number of
 * sets, whatever that is), and the size of the page where the array holds several. All ones is an
 * empty way: as a tag of 32 bits that may be a page's, too, and then the array widens its tags. */
typedef struct {
    void *tags, *spare;
    uint64_t *trees; /* tree-PLRU: bit n is node n, from 1; set: the victim is to the right */
    uint64_t reciprocal, set_mask, random;
    uint32_t sets, ways;
    uint8_t body, tag_shift, size_bits, index, power_of_two;
} sim_array;

#define SIM_EMPTY UINT64_MAX
#define SIM_EMPTY_NARROW UINT32_MAX

/* 0: no memory. An array of no ways is none at all. */
int sim_array_init(sim_array *array, const vtx_sim_array *like);
void sim_array_free(sim_array *array);
/* sim_array_touch(array, page, size), in tlbsim_array.h: look a page up and make it the most
 * recently used of its set; on a miss it takes the place of an empty way or of the victim. Returns
 * whether it was there. This is the part of it for rare bodies. */
int sim_array_touch_other(sim_array *array, uint64_t set, uint64_t tag);

/* ---- Walks ---------------------------------------------------------------------------------- */

/* Where the guest's tables lie: in order of first use, one 4-KByte frame each. */
typedef struct {
    uint64_t *keys; /* 0: free */
    uint32_t *frames;
    uint64_t mask;
    uint32_t used;
} sim_tables;

typedef struct {
    uint32_t guest_levels, ept_levels;
    sim_array guest_cache[6], ept_cache[6], nested;
    sim_tables tables;
    uint64_t table_base;
    const vtx_sim_pages *ept_pages;
    vtx_sim_counts *counts;
    int failed; /* no memory */
} sim_walker;

int sim_walker_init(sim_walker *walker, const vtx_sim_geometry *geometry, vtx_sim_counts *counts);
void sim_walker_free(sim_walker *walker);
void sim_walk(sim_walker *walker, uint64_t address, unsigned guest_size);

unsigned sim_page_size(const vtx_sim_pages *pages, uint64_t address, unsigned side);

/* ---- A geometry, and what it holds ---------------------------------------------------------- */

enum {
    SIM_PIECE = 2048, /* records that every geometry sees before the next ones: 16 KBytes */
    SIM_DENSE_SHARE = 10, /* more than one record in so many that the front does not pass: dense */
    SIM_CLASSES = 16  /* low bits of a page number that the front tells apart */
};

/* One level as one side sees it. */
typedef struct {
    vtx_sim_slot *slot;
    sim_array *array[3]; /* by size of the page; NULL: this level does not hold it */
    uint8_t stored[3];   /* by size of the page: the size it is kept as */
} sim_level;

/* Which vector instructions there are, and may be used. */
enum sim_vectors { SIM_PORTABLE, SIM_WITH_AVX2, SIM_WITH_AVX512 };

/* How the stream meets the first level. */
enum sim_mode { SIM_SPLIT, SIM_TOGETHER, SIM_FETCHES, SIM_DATA };

/* For each value of a page number's low four bits, the page (in units of 1 << shift bytes, less
 * those bits) that was used last among them, if it is the last used one of its set in the first
 * level as well; SIM_EMPTY_NARROW if there is none, so that a page of that number is never passed.
 * Values that are the same modulo `step` share sets: using one of them forgets the others. By side,
 * SIM_TOGETHER on side 0. */
typedef struct {
    uint32_t tags[2][SIM_CLASSES];
    uint8_t shift;
    uint8_t step[2]; /* a power of two up to SIM_CLASSES */
    uint16_t sharing[2][SIM_CLASSES]; /* bit n: class n shares sets with this one */
} sim_front;

/* Two levels of 4-KByte pages, true LRU, short tags, and the low bits of the page number for a set:
 * the usual geometries, as tlbsim_lean.c has them. */
typedef struct {
    uint32_t *tags[2];
    vtx_sim_slot *slots[2];
    uint32_t set_mask[2];
    uint8_t tag_shift[2];
    uint8_t ways; /* of the first level */
} sim_lean;

/* Look up in the second level what missed the first, and walk if it misses that as well; look up one
 * record in both; `count` records, all of them of use, without the front: how many of them are
 * done, less than all if the next one makes the geometry cease to be lean. */
typedef void sim_lean_one(vtx_sim *sim, uint64_t record);
typedef sim_lean_one sim_lean_two;
typedef unsigned sim_lean_all(vtx_sim *sim, const uint64_t *records, unsigned count);

/* Look up the records that the front does not pass; returns how many these are. */
typedef unsigned sim_loop(vtx_sim *sim, const uint64_t *records, unsigned count);

struct vtx_sim {
    vtx_sim_geometry geometry;
    vtx_sim_counts counts;
    sim_array arrays[VTX_SIM_ARRAYS];
    sim_level levels[2][VTX_SIM_LEVELS];
    unsigned level_count[2];
    uint8_t used[2]; /* the stream's fetches, its data */
    uint8_t mode;    /* enum sim_mode */
    uint8_t uniform; /* each side has pages of one size */
    uint8_t size[2]; /* by side, if uniform: of what a TLB holds */
    uint8_t frontal; /* the front may pass what was used last */
    uint8_t twice;   /* a modify is two accesses */
    uint8_t vectors; /* enum sim_vectors */
    uint8_t plain;   /* a walk reads one entry a level, always: counted from the number of walks */
    uint8_t dense;   /* few records were passed of late */
    sim_front front;
    sim_loop *loop;
    sim_lean_one *lean_one; /* NULL: not lean */
    sim_lean_two *lean_two;
    sim_lean_all *lean_all;
    sim_lean lean[2]; /* by side */
    sim_walker walker;
};

INLINE uint32_t record_kind(uint64_t record) {
    return (uint32_t)(record >> 62);
}
INLINE uint64_t record_size(uint64_t record) {
    return record >> 48 & 0x3FFF;
}
INLINE uint64_t record_address(uint64_t record) {
    return record & 0x0000FFFFFFFFFFFFull;
}
/* Not 0: it reaches beyond 4 KBytes, or has no bytes. */
INLINE uint64_t record_reaches(uint64_t record) {
    return ((record & 0xFFF) + record_size(record) - 1) & ~0xFFFull;
}

/* A short tag of this address may be that of an empty way: arrays are about to widen their tags. */
INLINE int sim_widens(uint64_t address) {
    return address >> 16 == SIM_EMPTY_NARROW;
}

/* The page of an address was looked up: it is what was used last, if it is kept at all. */
INLINE void front_note(sim_front *front, unsigned side, uint64_t address, int kept) {
    const uint64_t page = address >> front->shift;
    const unsigned class = page % SIM_CLASSES;
    const unsigned step = front->step[side];
    for (unsigned other = class % step; step < SIM_CLASSES && other < SIM_CLASSES; other += step)
        front->tags[side][other] = SIM_EMPTY_NARROW;
    front->tags[side][class] = kept ? (uint32_t)(page / SIM_CLASSES) : SIM_EMPTY_NARROW;
}

/* Look up a record that the front did not pass, or one of no use (tlbsim.c). */
void sim_refer(vtx_sim *sim, uint64_t record);
/* Look up one address in all levels. */
void sim_look_up(vtx_sim *sim, unsigned side, uint32_t kind, uint64_t address);
/* A walk that is not plain. */
void sim_walk_for(vtx_sim *sim, unsigned side, uint64_t address);
/* The size of the page that holds an address, as a TLB holds it: the smaller of the guest's page
 * and EPT's. */
unsigned sim_size_at(const vtx_sim *sim, unsigned side, uint64_t address, unsigned *guest);

/* It missed all levels. */
INLINE void sim_missed(vtx_sim *sim, unsigned side, uint32_t kind, uint64_t address) {
    sim->counts.walks[kind]++;
    if (!sim->plain)
        sim_walk_for(sim, side, address);
}

/* Choose the loops for a geometry (tlbsim_loop.c, tlbsim_lean.c). */
void sim_set_loop(vtx_sim *sim);
void sim_set_lean(vtx_sim *sim);
/* After records that did not go through the front: what it may pass now. */
void sim_lean_front(vtx_sim *sim);

/* Add a piece's kinds to `kinds`. */
void sim_count_kinds(const uint64_t *records, unsigned count, uint64_t kinds[4], int vectors);

sim_loop *sim_loop_portable(const vtx_sim *sim);
#if defined(SIM_AVX2)
sim_loop *sim_loop_avx2(const vtx_sim *sim);
sim_loop *sim_loop_avx512(const vtx_sim *sim);
void sim_count_kinds_avx2(const uint64_t *records, unsigned count, uint64_t kinds[4]);
#endif

#endif
