/* The run loop: records are consumed until something needs Python.
 *
 *   record   63..62 kind   61..48 size in bytes   47..0 linear address (bit 47 is sign-extended)
 *   kind 0 with size 0: an instruction; bits 47..0 index the dispositions
 *
 * Counting: a reference counts once, where it completes. One that stops the loop has looked up
 * and walked (walk references are counted: they happened), but its lookups count only when it is
 * run again and completes. The exception is a reference that crosses a page and stops on its
 * second page: its first page was translated and counts, and counts again when the reference is
 * run again.
 *
 * Most references hit the entry that is the most recently used one of its set. Then a lookup
 * would change nothing, and only its count is kept: vtx_run asks the front (front.c), and leaves
 * the rest to run_slow. */
#include "mmu.h"

#define ADDRESS_BITS 0x0000FFFFFFFFFFFFull

static inline uint64_t record_address(uint64_t record) {
    return (uint64_t)((int64_t)(record << 16) >> 16);
}
static inline uint32_t record_kind(uint64_t record) {
    return (uint32_t)(record >> 62);
}
static inline uint64_t record_size(uint64_t record) {
    return record >> 48 & 0x3FFF;
}

typedef struct {
    walker w;
    const uint8_t *dispositions;
    uint64_t disposition_count;
    uint32_t flags;
} run_state;

/* VTX_APIC_ACCESS if what was translated is in the APIC-access page; 1 if only its large page holds
 * that page: then the front must not learn of it. */
static uint32_t near_apic(const run_state *run) {
    const vtx_walk *out = run->w.out;
    const uint64_t page = run->w.context->apic_access, hpa = out->hpa;
    if (!page || (hpa ^ page) >> (out->source == VTX_FROM_IDENTITY ? 12 : out->page_shift))
        return 0;
    return (hpa ^ page) >> 12 ? 1 : VTX_APIC_ACCESS;
}

static uint32_t run_page(run_state *run, uint64_t gva, uint32_t kind) {
    vtx_mmu *mmu = run->w.mmu;
    tlb_entry *entry;
    const uint32_t status = mmu_translate_page(&run->w, gva, kind, &entry);
    const uint32_t apic = status == VTX_OK ? near_apic(run) : 0;
    if (status == VTX_OK && apic != VTX_APIC_ACCESS) {
        if (apic)
            front_forget(mmu); /* an entry that the front knows may have gone for it */
        else
            front_note(mmu, kind, gva, entry);
        return VTX_OK;
    }
    if (apic) {
        front_forget(mmu);
        run->w.out->status = VTX_APIC_ACCESS;
    }
    run->w.out->gva = gva;
    run->w.out->access = kind;
    return apic ? apic : status;
}

static uint32_t run_instruction(run_state *run, uint64_t record) {
    const uint64_t operand = record & ADDRESS_BITS;
    uint32_t status;
    if (operand >= run->disposition_count)
        status = VTX_BAD_RECORD;
    else if (run->dispositions[operand] == 0)
        status = VTX_INSTRUCTION;
    else {
        run->w.mmu->counters.instructions++;
        return VTX_OK;
    }
    run->w.out->operand = operand;
    return run->w.out->status = status;
}

/* Everything that the fast path of vtx_run does not decide. */
NOINLINE static uint32_t run_slow(run_state *run, uint64_t record) {
    const uint32_t kind = record_kind(record);
    const uint64_t size = record_size(record);
    const uint64_t gva = record_address(record);
    vtx_mmu *mmu = run->w.mmu;
    if (kind == VTX_FETCH && size == 0)
        return run_instruction(run, record);
    uint32_t status = run_page(run, gva, kind);
    if (status)
        return status;
    if ((gva & 0xFFF) + size > 0x1000 && !(run->flags & VTX_FIRST_PAGE_ONLY)) {
        status = run_page(run, (gva & ~0xFFFull) + 0x1000, kind);
        if (status)
            return status;
        mmu->counters.page_crossings++;
    }
    mmu->counters.references[kind]++;
    return VTX_OK;
}

/* Counts by kind in one register, 16 bits each; enough for one block of records. */
enum { BLOCK = 0xFFFF };

static void add_passed(vtx_counters *counters, uint64_t passed) {
    const uint64_t kinds[4] = {passed & 0xFFFF, passed >> 16 & 0xFFFF, passed >> 32 & 0xFFFF,
                               passed >> 48};
    for (uint32_t kind = 0; kind < 4; kind++)
        counters->references[kind] += kinds[kind];
    counters->l1i_hits += kinds[VTX_FETCH];
    counters->l1d_hits += kinds[VTX_LOAD] + kinds[VTX_STORE] + kinds[VTX_MODIFY];
}

/* Pass records as long as each is a reference within one page, at least one byte long (size 0
 * wraps: an instruction, or an access that counts as one byte), and the front knows its page.
 * Returns the first other record. `now` is the stamp of record 0. `small`: all pages are of
 * 4 KBytes, which the compiler turns into constants. */
static inline uint64_t pass(const run_front *front, const uint64_t *records, uint64_t i,
                            uint64_t stop, uint64_t now, uint64_t *passed, int small) {
    const uint64_t key = front->key;
    uint64_t count = *passed;
    for (; i < stop; i++) {
        const uint64_t record = records[i];
        const uint32_t kind = record_kind(record);
        const uint64_t page_mask = small ? 0x0000FFFFFFFFF000ull : front->page_mask[kind];
        const uint64_t number = small ? record >> 12 : record >> front->shift[kind];
        const front_slot *slot = &front->base[kind][number & (FRONT_SLOTS - 1)];
        if (((slot->word ^ ((record & page_mask) | key)) & front->compared[kind]) ||
            record_size(record) - 1 > (~record & 0xFFF))
            break;
        *slot->stamp = now + i;
        count += front->passed[kind];
    }
    *passed = count;
    return i;
}

/* Run records as long as the front knows or finds their pages; returns the first other one. */
static inline uint64_t run_front_only(vtx_mmu *mmu, const uint64_t *records, uint64_t i,
                                      uint64_t stop, uint64_t *passed, int small) {
    const run_front *front = &mmu->front;
    for (;; i++) {
        const uint64_t now = mmu->tlb.clock + 1 - i;
        i = pass(front, records, i, stop, now, passed, small);
        mmu->tlb.clock = now + i - 1; /* of the last record passed */
        if (i == stop)
            return i;
        const uint64_t record = records[i];
        const uint32_t kind = record_kind(record);
        if (record_size(record) - 1 > (~record & 0xFFF) ||
            !front_find(mmu, kind, record_address(record)))
            return i;
        mmu->counters.references[kind]++;
    }
}

/* Run at most BLOCK records; returns the record that stopped it, or `stop`. */
static uint64_t run_block(run_state *run, const uint64_t *records, uint64_t i, uint64_t stop,
                          uint32_t *status) {
    vtx_mmu *mmu = run->w.mmu;
    const run_front *front = &mmu->front;
    const int apic = run->w.context->apic_access != 0;
    uint64_t passed = 0;
    for (; i < stop; i++) {
        if (apic) { /* what only a full translation tells */
            const uint64_t now = mmu->tlb.clock + 1 - i;
            i = pass(front, records, i, stop, now, &passed, 0);
            mmu->tlb.clock = now + i - 1;
        } else if (front->size[0] == SIZE_4K && front->size[1] == SIZE_4K) {
            i = run_front_only(mmu, records, i, stop, &passed, 1);
        } else {
            i = run_front_only(mmu, records, i, stop, &passed, 0);
        }
        if (i == stop)
            break;
        *status = run_slow(run, records[i]);
        if (*status)
            break;
    }
    add_passed(&mmu->counters, passed);
    return i;
}

uint32_t vtx_run(vtx_mmu *mmu, vtx_context *context, const uint64_t *records, uint64_t *index,
                 uint64_t stop, const uint8_t *dispositions, uint64_t disposition_count,
                 uint32_t flags, vtx_walk *out) {
    mmu_enter(mmu, context);
    memset(out, 0, sizeof *out);
    run_state run = {.w = {.mmu = mmu, .context = context, .out = out, .caches = 1},
                     .dispositions = dispositions,
                     .disposition_count = disposition_count,
                     .flags = flags};
    uint32_t status = VTX_OK;
    uint64_t i = *index;
    while (i < stop && status == VTX_OK)
        i = run_block(&run, records, i, stop - i < BLOCK ? stop : i + BLOCK, &status);
    *index = i;
    if (status == VTX_OK)
        out->status = status = VTX_END;
    return status;
}
