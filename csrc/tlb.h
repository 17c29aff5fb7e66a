/* The TLBs: set-associative, tagged by mapping space; LRU, tree-PLRU or random replacement.
 *
 * A space is what the SDM tags cached mappings with: linear mappings by VPID and PCID, combined
 * mappings by VPID, PCID and EP4TA (EPTP bits 51:12), guest-physical mappings by EP4TA; global
 * translations belong to a space of their own that every PCID of the VPID shares. Each space in use
 * has a small number, so that one 64-bit tag holds everything that a lookup compares:
 *
 *   tag      63..19 linear page number (4-KByte units)   18..17 page size   16..0 space
 *   payload  62..0  see PAYLOAD_* below
 *
 * Tag 0 is an empty way: space 0 is never given out. */
#ifndef VTX_TLB_H
#define VTX_TLB_H

#include "core.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

/* ---- Spaces --------------------------------------------------------------------------------- */

enum space_kind { SPACE_FREE, SPACE_LINEAR, SPACE_COMBINED, SPACE_GUEST_PHYSICAL };

enum { SPACE_BITS = 17, SPACE_COUNT = 1 << SPACE_BITS, SPACE_SLOTS = 2 << SPACE_BITS };

typedef struct {
    uint64_t ep4ta; /* EPTP & bits 51:12 */
    uint16_t vpid, pcid;
    uint8_t kind; /* enum space_kind */
    uint8_t global;
    uint8_t filled; /* something may be cached in it */
    uint8_t chosen; /* scratch of an invalidation */
} tlb_space;

/* ---- Entries -------------------------------------------------------------------------------- */

enum tlb_size { SIZE_4K, SIZE_2M, SIZE_1G, SIZE_4M /* guest pages of 32-bit paging only */ };

static const uint8_t size_shift[4] = {12, 21, 30, 22};

/* Rights and state, bits 7:0 of a payload. Guest and EPT rights stay apart, because CR0.WP,
 * CR4.SMAP and the like decide anew at every access what they allow. */
enum {
    RIGHT_U = 1u << 0, /* user-mode page */
    RIGHT_W = 1u << 1, /* guest paging: writable */
    RIGHT_X = 1u << 2, /* guest paging: not execute-disabled */
    RIGHT_D = 1u << 3, /* the guest's dirty flag is set */
    RIGHT_EPT_R = 1u << 4,
    RIGHT_EPT_W = 1u << 5, /* and EPT's dirty flag is set, where EPT has one */
    RIGHT_EPT_X = 1u << 6, /* as mode-based execute control decides for this page */
};

enum {
    PAYLOAD_KEY_SHIFT = 8, /* 11..8  protection key */
    PAYLOAD_GLOBAL_SHIFT = 52,
    PAYLOAD_TYPE_SHIFT = 53,  /* 55..53 EPT memory type */
    PAYLOAD_GUEST_SHIFT = 56, /* 57..56 guest page size (enum tlb_size) */
    PAYLOAD_IPAT_SHIFT = 58,
    PAYLOAD_PAT_SHIFT = 59, /* 61..59 PAT, PCD, PWT */
};
#define PAYLOAD_FRAME 0x000FFFFFFFFFF000ull /* 51..12 host-physical frame */

typedef struct {
    uint64_t tag, payload;
} tlb_entry;

static inline uint64_t tlb_tag(uint64_t va, enum tlb_size size, uint32_t space) {
    return (va >> size_shift[size] << (size_shift[size] - 12)) << 19 | (uint64_t)size << 17 | space;
}
static inline uint64_t tag_address(uint64_t tag) {
    return (uint64_t)((int64_t)(tag >> 19 << 19) >> 7); /* sign-extended from bit 56 */
}
static inline unsigned tag_size(uint64_t tag) {
    return tag >> 17 & 3;
}
static inline uint32_t tag_space(uint64_t tag) {
    return (uint32_t)tag & (SPACE_COUNT - 1);
}

/* ---- Arrays --------------------------------------------------------------------------------- */

/* Entries stay in the way that they were put in; which of a set goes next is kept beside them, in
 * one word of `order` a set or in one stamp an entry. A short
 * key of each entry, a hash of page number and size, makes the search: four are compared at once,
 * and what they find is compared in full. Empty ways (tag 0) are filled first. */
typedef struct {
    tlb_entry *entries; /* sets one after the other */
    uint32_t *keys;     /* key_stride a set; 0 beyond `ways` and in most empty ways */
    uint64_t *order;    /* by set: see enum tlb_order */
    uint64_t *stamps;   /* ORDER_STAMPS: by entry, when it was last used; 0 if empty. Random first
                         * levels have them, too, so that the run loop need not know. */
    uint64_t *clock;    /* the last stamp: one for all arrays */
    uint64_t random;    /* ORDER_RANDOM: the generator's state */
    uint32_t set_mask, ways, key_stride;
    uint32_t sets;
    uint8_t level, sides, pages;
    uint8_t present; /* page sizes (1 << tlb_size) that it may hold; 0 after a full flush */
    uint8_t ordered; /* enum tlb_order */
} tlb_array;

enum tlb_order {
    ORDER_NIBBLES, /* LRU: the ways from most to least recently used, 4 bits each (up to 16) */
    ORDER_STAMPS,  /* LRU: first levels, whose hits are many, and more than 16 ways */
    ORDER_TREE,    /* tree-PLRU: bit n of the word is node n of the tree (root 1): 0 left, 1 right */
    ORDER_RANDOM,
};

/* The arrays that one level has for instruction fetches or for data. */
typedef struct {
    uint8_t count[3];     /* by page size: arrays that take it */
    uint8_t stored_as[3]; /* by page size: the size it is kept as: it, or the next smaller */
    uint8_t any;          /* there is an array at all */
    tlb_array *array[3][VTX_MAX_ARRAYS];
} tlb_side;

typedef struct {
    tlb_array arrays[VTX_MAX_ARRAYS];
    unsigned array_count;
    uint64_t clock;
    tlb_side sides[2][2];  /* [level - 1][0 instruction, 1 data] */
    uint8_t shared_l1;     /* a first-level array serves both sides */
    uint8_t large;         /* an array may hold a page larger than 4 KBytes */
    tlb_space *spaces;     /* SPACE_COUNT of them */
    uint32_t *slots;       /* hash of spaces, open addressing; SPACE_SLOTS of them */
    uint32_t space_limit;  /* above every number in use */
    uint32_t space_cursor; /* no free number below */
} vtx_tlb;

int tlb_init(vtx_tlb *tlb, const vtx_shape *shape);
void tlb_free(vtx_tlb *tlb);

/* The number of the space with this key, new or known; 0 if every number is in use. */
uint32_t tlb_space_of(vtx_tlb *tlb, const tlb_space *key);
/* Choose the spaces that any entry is tagged with (tlb_space.chosen = 1) and clear the others. */
void tlb_mark_live(vtx_tlb *tlb);
/* Forget every space that is not chosen: numbers of live ones stay, because tags hold them. */
void tlb_sweep_spaces(vtx_tlb *tlb);

static inline uint32_t tlb_key(uint64_t tag) {
    return (uint32_t)(tag >> SPACE_BITS);
}

/* Bits of the keys [way, way + 4) that equal `key`. */
static inline unsigned tlb_match4(const uint32_t *keys, uint32_t key) {
#if defined(__SSE2__)
    const __m128i four = _mm_loadu_si128((const __m128i *)(const void *)keys);
    const __m128i same = _mm_cmpeq_epi32(four, _mm_set1_epi32((int)key));
    return (unsigned)_mm_movemask_ps(_mm_castsi128_ps(same));
#else
    return (unsigned)(keys[0] == key) | (unsigned)(keys[1] == key) << 1 |
           (unsigned)(keys[2] == key) << 2 | (unsigned)(keys[3] == key) << 3;
#endif
}

static inline unsigned lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(bits);
#else
    unsigned n = 0;
    for (; !(bits & 1); bits >>= 1)
        n++;
    return n;
#endif
}

/* Bits of the keys [0, stride) that equal `key`; stride is 4, 8, 12 or 16. */
static inline uint64_t tlb_match16(const uint32_t *keys, uint32_t stride, uint32_t key) {
    uint64_t found = tlb_match4(keys, key);
    if (stride > 4)
        found |= (uint64_t)tlb_match4(keys + 4, key) << 4;
    if (stride > 8)
        found |= (uint64_t)tlb_match4(keys + 8, key) << 8;
    if (stride > 12)
        found |= (uint64_t)tlb_match4(keys + 12, key) << 12;
    return found;
}

/* The way of `set` that holds `tag` or `other` (which differ in their space alone), or `ways`. The
 * keys of 16 ways are compared before anything depends on what they say. */
static inline uint32_t tlb_search(const tlb_array *array, uint64_t set, uint64_t tag,
                                  uint64_t other) {
    const uint32_t key = tlb_key(tag);
    const uint32_t *keys = array->keys + set * array->key_stride;
    const tlb_entry *entries = array->entries + set * array->ways;
    uint32_t from = 0;
    do {
        uint64_t found = tlb_match16(keys + from, array->key_stride - from, key);
        for (; found; found &= found - 1) {
            const uint32_t at = from + lowest_bit(found);
            if (at < array->ways && (entries[at].tag == tag || entries[at].tag == other))
                return at;
        }
        from += 16;
    } while (from < array->key_stride);
    return array->ways;
}

#define NIBBLES 0x1111111111111111ull

/* Position of `way` in an order of nibbles, times 4. Unused nibbles are 0 and lie above way 0's. */
static inline unsigned nibble_position(uint64_t order, uint32_t way) {
    const uint64_t x = order ^ way * NIBBLES;
    return lowest_bit((x - NIBBLES) & ~x & (NIBBLES << 3)) & ~3u;
}

static inline uint64_t nibble_to_front(uint64_t order, uint32_t way) {
    const unsigned at = nibble_position(order, way);
    const uint64_t newer = (1ull << at) - 1;
    return (order & ~(newer | 15ull << at)) | (order & newer) << 4 | way;
}

void tlb_touch_tree(tlb_array *array, uint64_t set, uint32_t way);

/* This way was used just now. */
static inline void tlb_touch(tlb_array *array, uint64_t set, uint32_t way) {
    if (array->ordered == ORDER_NIBBLES)
        array->order[set] = nibble_to_front(array->order[set], way);
    else if (array->ordered == ORDER_STAMPS)
        array->stamps[set * array->ways + way] = ++*array->clock;
    else if (array->ordered == ORDER_TREE)
        tlb_touch_tree(array, set, way);
}

/* The way that an array with ORDER_STAMPS fills: an empty one (stamp 0), or the oldest. */
static inline uint32_t tlb_oldest(const tlb_array *array, uint64_t set) {
    const uint64_t *stamps = array->stamps + set * array->ways;
    uint32_t oldest = 0;
    uint64_t least = stamps[0];
    for (uint32_t way = 1; way < array->ways; way++) {
        oldest = stamps[way] < least ? way : oldest;
        least = stamps[way] < least ? stamps[way] : least;
    }
    return oldest;
}

/* Put an entry into a way, and count that as a use of it. */
static inline tlb_entry *tlb_put(tlb_array *array, uint64_t set, uint32_t way, uint64_t tag,
                                 uint64_t payload) {
    tlb_entry *entry = &array->entries[set * array->ways + way];
    array->keys[set * array->key_stride + way] = tlb_key(tag);
    *entry = (tlb_entry){tag, payload};
    tlb_touch(array, set, way);
    return entry;
}

/* Look a linear address up in one level: a hit counts as a use of its way.
 * `global` is the space of global translations (or `space` again). NULL on a miss. */
tlb_entry *tlb_find(const tlb_side *side, uint64_t va, uint32_t space, uint32_t global);
/* Put a translation of a page of `size` (0 to 2) into one level, as the last used of its set. Its
 * frame is that of the page; the part for `va` is kept where the level lacks the size. */
tlb_entry *tlb_fill(vtx_tlb *tlb, const tlb_side *side, uint64_t va, enum tlb_size size,
                    uint32_t space, uint64_t payload);
/* Replace the payload of an entry that is there, which is no use of it; NULL if it is
 * not. */
tlb_entry *tlb_update(const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                      uint64_t payload);

/* Which entries of the chosen spaces an invalidation removes: all, or those for one address. */
typedef struct {
    int by_address;
    uint64_t address;
} tlb_target;

/* Remove the entries that translate one address in either space, wherever they are. */
void tlb_forget(vtx_tlb *tlb, uint64_t va, uint32_t space, uint32_t global);
/* Remove the entries of all chosen spaces that `target` names; returns how many. */
uint64_t tlb_remove(vtx_tlb *tlb, const tlb_target *target);

/* Does an entry with this tag and payload translate `address` (by its guest page)? */
static inline int tlb_entry_covers(uint64_t tag, uint64_t payload, uint64_t address) {
    const unsigned stored = size_shift[tag_size(tag)];
    const unsigned guest = size_shift[payload >> PAYLOAD_GUEST_SHIFT & 3];
    const unsigned shift = guest > stored ? guest : stored;
    return ((tag_address(tag) ^ address) << 7 >> 7) >> shift == 0;
}

#endif
