/* The TLBs: set-associative, true LRU, tagged by mapping space.
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

typedef struct {
    tlb_entry *entries; /* sets one after the other, each from most to least recently used */
    uint32_t set_mask, ways;
    uint32_t sets;
    uint8_t level, sides, pages;
    uint8_t present; /* page sizes (1 << tlb_size) that it may hold; 0 after a full flush */
} tlb_array;

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
    tlb_side sides[2][2];  /* [level - 1][0 instruction, 1 data] */
    uint8_t shared_l1;     /* a first-level array serves both sides */
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

/* Position of a tag in a set, or `ways`. Empty ways are last, so the first one ends the search. */
static inline uint32_t tlb_search(const tlb_entry *set, uint32_t ways, uint64_t tag,
                                  uint64_t other) {
    for (uint32_t way = 0; way < ways && set[way].tag; way++)
        if (set[way].tag == tag || set[way].tag == other)
            return way;
    return ways;
}

static inline void tlb_move_to_front(tlb_entry *set, uint32_t way, tlb_entry entry) {
    for (; way > 0; way--)
        set[way] = set[way - 1];
    set[0] = entry;
}

/* Look a linear address up in one level: a hit becomes the most recently used of its set.
 * `global` is the space of global translations (or `space` again). NULL on a miss. */
tlb_entry *tlb_find(const tlb_side *side, uint64_t va, uint32_t space, uint32_t global);
/* Put a translation of a page of `size` (0 to 2) into one level, as the most recently used of
 * its set. Its frame is that of the page; the part for `va` is kept where the level lacks the
 * size. */
tlb_entry *tlb_fill(const tlb_side *side, uint64_t va, enum tlb_size size, uint32_t space,
                    uint64_t payload);
/* Replace the payload of an entry that is there, without touching the LRU order; NULL if it is
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
