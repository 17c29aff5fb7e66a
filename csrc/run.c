/* The run loop: records are consumed until something needs Python.
 *
 *   record   63..62 kind   61..48 size in bytes   47..0 linear address (bit 47 is sign-extended)
 *   kind 0 with size 0: an instruction; bits 47..0 index the dispositions
 *
 * Counting: a reference counts once, where it completes. One that stops the loop has looked up and
 * walked (walk references are counted: they happened), but its lookups count only when it is run
 * again and completes. The exception is a reference that crosses a page and stops on its second page:
 * its first page was translated and counts, and counts again when the reference is run again.
 *
 * Most references touch the page that their side (instructions, data) touched last. That page's entry
 * is then the most recently used one of its set, so a lookup would change nothing and only its count
 * is kept: `filter` holds, by kind of access, the last page of the side if the kind is allowed there. */
#include "mmu.h"

#define PAGE_BITS 0x0000FFFFFFFFF000ull
#define ADDRESS_BITS 0x0000FFFFFFFFFFFFull
#define NO_PAGE (~0ull)

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

/* After a lookup of `page` that left `entry` the most recently used: what may skip the next lookup. */
static inline void set_filter(vtx_mmu *mmu, uint32_t kind, uint64_t page, const tlb_entry *entry) {
    if (mmu->tlb.shared_l1) /* the other side's last page may not be the most recently used now */
        mmu_clear_filter(mmu);
    if (kind == VTX_FETCH) {
        mmu->filter[VTX_FETCH] = entry ? page : NO_PAGE;
        return;
    }
    for (uint32_t k = VTX_LOAD; k <= VTX_MODIFY; k++)
        mmu->filter[k] = entry && mmu_allows(mmu, entry->payload, k) ? page : NO_PAGE;
}

static uint32_t run_page(run_state *run, uint64_t gva, uint32_t kind) {
    vtx_mmu *mmu = run->w.mmu;
    tlb_entry *entry;
    const uint32_t status = mmu_translate_page(&run->w, gva, kind, &entry);
    if (status == VTX_OK) {
        set_filter(mmu, kind, gva & PAGE_BITS, entry);
        return VTX_OK;
    }
    run->w.out->gva = gva;
    run->w.out->access = kind;
    return status;
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
static uint32_t run_slow(run_state *run, uint64_t record) {
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

uint32_t vtx_run(vtx_mmu *mmu, vtx_context *context, const uint64_t *records, uint64_t *index,
                 uint64_t stop, const uint8_t *dispositions, uint64_t disposition_count,
                 uint32_t flags, vtx_walk *out) {
    mmu_enter(mmu, context);
    memset(out, 0, sizeof *out);
    run_state run = {.w = {.mmu = mmu, .context = context, .out = out, .caches = 1},
                     .dispositions = dispositions,
                     .disposition_count = disposition_count,
                     .flags = flags};
    uint64_t passed[4] = {0, 0, 0, 0};
    uint32_t status = VTX_OK;
    uint64_t i = *index;
    for (; i < stop; i++) {
        const uint64_t record = records[i];
        const uint32_t kind = record_kind(record);
        /* The same page as last time, at least one byte, and not beyond the page's end (size 0 wraps
         * to a large number: an instruction, or an access that counts as one byte). */
        if ((record & PAGE_BITS) == mmu->filter[kind] &&
            record_size(record) - 1 <= 0xFFF - (record & 0xFFF)) {
            passed[kind]++;
            continue;
        }
        status = run_slow(&run, record);
        if (status)
            break;
    }
    for (uint32_t kind = 0; kind < 4; kind++)
        mmu->counters.references[kind] += passed[kind];
    mmu->counters.l1i_hits += passed[VTX_FETCH];
    mmu->counters.l1d_hits += passed[VTX_LOAD] + passed[VTX_STORE] + passed[VTX_MODIFY];
    *index = i;
    if (status == VTX_OK)
        out->status = status = VTX_END;
    return status;
}
