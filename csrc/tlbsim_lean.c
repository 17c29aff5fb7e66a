/* Lean geometries: two levels of 4-KByte pages with true LRU, usual ways and 32-bit tags, where the
 * set is the low bits of the page number. Their ways are constants here, and nothing is called on
 * the way of a record through both levels. */
#include "tlbsim_array.h"
#include "tlbsim_avx2.h"
#include "tlbsim_avx512.h"


typedef struct {
    sim_lean_two *two;
    sim_lean_one *one;
    sim_lean_all *all;
} lean_bodies;

static int may_widen(uint64_t record) {
    const uint64_t address = record_address(record);
    return sim_widens(address) || sim_widens(record_address(address + record_size(record) - 1));
}

/* ---- For every processor -------------------------------------------------------------------- */

#define TARGET
#define NAMED(NAME) portable_##NAME
#define TOUCH lru_narrow
#include "tlbsim_lean_bodies.h"
#undef TARGET
#undef NAMED
#undef TOUCH

/* ---- For those with AVX2 -------------------------------------------------------------------- */

#if defined(SIM_AVX2)
#define TARGET SIM_AVX2
#define NAMED(NAME) avx2_##NAME
#define TOUCH lru_avx2
#include "tlbsim_lean_bodies.h"
#undef TARGET
#undef NAMED
#undef TOUCH

/* ---- For those with AVX-512 ----------------------------------------------------------------- */

#define TARGET SIM_AVX512
#define NAMED(NAME) avx512_##NAME
#define TOUCH lru_avx512
#include "tlbsim_lean_bodies.h"

#endif

/* ---- Which geometries ----------------------------------------------------------------------- */

static int is_lean(const sim_array *array) {
    return array && array->body >= BODY_LRU_NARROW_4 && array->body <= BODY_LRU_NARROW_16 &&
           array->power_of_two && array->index == VTX_SIM_MODULO && !array->size_bits;
}

/* The sides that are used have the same ways: one body serves both. */
static int side_is_lean(vtx_sim *sim, unsigned side, const sim_array *like[2]) {
    sim_lean *lean = &sim->lean[side];
    if (sim->level_count[side] != 2)
        return 0;
    for (unsigned i = 0; i < 2; i++) {
        const sim_array *array = sim->levels[side][i].array[0];
        if (!is_lean(array) || (like[i] && like[i]->ways != array->ways))
            return 0;
        lean->tags[i] = array->tags;
        lean->set_mask[i] = array->sets - 1;
        lean->tag_shift[i] = array->tag_shift;
        lean->slots[i] = sim->levels[side][i].slot;
        like[i] = array;
    }
    lean->ways = (uint8_t)like[0]->ways;
    return lean->ways <= 8;
}

void sim_set_lean(vtx_sim *sim) {
    const sim_array *like[2] = {NULL, NULL};
    if (!sim->uniform)
        return;
    for (unsigned side = 0; side < 2; side++)
        if (sim->used[side] && (sim->size[side] || !side_is_lean(sim, side, like)))
            return;
    const unsigned ways1 = like[0]->ways / 8, ways2 = like[1]->ways / 4 - 1;
    lean_bodies bodies = portable_bodies[ways1][ways2];
#if defined(SIM_AVX2)
    if (sim->vectors)
        bodies = sim->vectors == SIM_WITH_AVX512 ? avx512_bodies[ways1][ways2]
                                                 : avx2_bodies[ways1][ways2];
#endif
    sim->lean_one = bodies.one;
    sim->lean_two = bodies.two;
    sim->lean_all = sim->twice ? NULL : bodies.all; /* a modify needs more than one lookup */
}

void sim_lean_front(vtx_sim *sim) {
    sim_front *front = &sim->front;
    for (unsigned side = 0; side < 2; side++) {
        if (!sim->used[side] || (side && sim->mode == SIM_TOGETHER))
            continue;
        const sim_array *array = sim->levels[side][0].array[0];
        const uint32_t *tags = array->tags;
        for (unsigned class = 0; class < SIM_CLASSES; class++)
            front->tags[side][class] = SIM_EMPTY_NARROW;
        for (uint64_t set = 0; set <= array->set_mask && set < SIM_CLASSES; set++) {
            const uint32_t tag = tags[set * array->ways];
            const uint64_t page = (uint64_t)tag << array->tag_shift | set;
            if (tag != SIM_EMPTY_NARROW && sim->frontal)
                front->tags[side][page % SIM_CLASSES] = (uint32_t)(page / SIM_CLASSES);
        }
    }
}
