/* What the two halves of the two-dimensional walk share: walk.c and walk_ept.c. */
#ifndef VTX_WALK_H
#define VTX_WALK_H

#include "mmu.h"

/* A guest-physical address translated. */
typedef struct {
    uint64_t hpa;
    uint64_t leaf;   /* EPT leaf, as it is after its flags were set */
    uint32_t rights; /* EPT_R and so on; all without EPT */
    uint8_t shift;   /* log2 of the EPT page size; 0 without EPT */
} gpa_translation;

/* Translate a guest-physical address for `access` (EPTQ_READ, EPTQ_WRITE, EPTQ_FETCH) of a linear
 * address that is a user-mode one or not. */
uint32_t walk_gpa(walker *w, uint64_t gpa, uint32_t access, int user_linear, gpa_translation *out);
/* Stop with an EPT violation; `complete`: every entry was present, so their rights are reported. */
uint32_t walk_violation(walker *w, const ept_walk *e, uint32_t access, int complete);

/* Keep a translation in the TLB for guest-physical mappings, which has entries. */
void nested_remember(vtx_mmu *mmu, uint64_t gpa, const gpa_translation *found);

/* ---- The record ----------------------------------------------------------------------------- */

static inline void walk_record(walker *w, vtx_step step) {
    if (w->out->step_count < w->capacity)
        w->steps[w->out->step_count++] = step;
}

static inline void walk_note(walker *w, unsigned dimension, unsigned level, unsigned kind,
                             uint64_t address, uint64_t gpa, uint64_t value) {
    if (w->steps)
        walk_record(w, (vtx_step){.address = address,
                                  .gpa = gpa,
                                  .value = value,
                                  .dimension = (uint8_t)dimension,
                                  .level = (uint8_t)level,
                                  .guest_level = w->guest_level,
                                  .kind = (uint8_t)kind,
                                  .size = (uint8_t)(dimension == VTX_GUEST
                                                        ? guest_entry_size(&w->mmu->guest)
                                                        : 8)});
}

/* The entry at this address was read, and noted just now: which data cache had it? */
static inline void walk_refer(walker *w, uint64_t counts[4], uint64_t address) {
    data_caches *data = &w->mmu->data;
    if (!data->any || !w->caches)
        return;
    const enum vtx_hit hit = data_caches_find(data, address);
    counts[hit - VTX_HIT_L1]++;
    if (w->out->step_count)
        w->steps[w->out->step_count - 1].hit = (uint8_t)hit;
}

static inline uint32_t walk_stop(walker *w, uint32_t status) {
    w->out->status = status;
    return status;
}

static inline uint32_t walk_stop_beyond(walker *w, uint64_t hpa) {
    w->out->fault_address = hpa;
    return walk_stop(w, VTX_BEYOND_MEMORY);
}

static inline uint32_t walk_stop_ept(walker *w, uint32_t status, uint64_t gpa) {
    w->out->gpa = gpa;
    w->out->gpa_valid = 1;
    return walk_stop(w, status);
}

#endif
