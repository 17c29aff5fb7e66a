/* The interface of the C core.
 *
 * The compiler reads this file through core.h, and cffi reads it verbatim: no directives, no
 * attributes, no computed constants. Every handle is independent of every other one; nothing here
 * prints, exits or keeps a global. Distinct handles may be used by distinct threads. */

/* ---- Physical memory (mem.c) ------------------------------------------------------------ */

typedef struct vtx_memory vtx_memory;

/* One sparse mapping of `size` bytes that reads 0 until written; NULL if the system refuses
 * (errno). */
vtx_memory *vtx_memory_new(uint64_t size, int huge_pages);
void vtx_memory_free(vtx_memory *memory);
uint64_t vtx_memory_size(const vtx_memory *memory);
/* First byte of the mapping, for buffers over physical memory. */
void *vtx_memory_base(vtx_memory *memory);
/* Give all pages back: memory reads 0 again. 0 on success. */
int vtx_memory_clear(vtx_memory *memory);
/* Bytes that the system has really given to the mapping. */
uint64_t vtx_memory_resident(const vtx_memory *memory);
/* Number of 4-KByte frames that hold anything but 0; the addresses of the first `room` of them go to
 * `addresses`, in ascending order. */
uint64_t vtx_memory_pages(const vtx_memory *memory, uint64_t *addresses, uint64_t room);
/* Both return 1 if [address, address + length) lies within memory and was copied, else 0. */
int vtx_memory_read(const vtx_memory *memory, uint64_t address, void *out, uint64_t length);
int vtx_memory_write(vtx_memory *memory, uint64_t address, const void *from, uint64_t length);

/* ---- Accesses and outcomes --------------------------------------------------------------- */

/* What an access is: the two kind bits of a record, and flags above them. */
enum vtx_access {
    VTX_FETCH = 0,  /* instruction fetch */
    VTX_LOAD = 1,   /* data read */
    VTX_STORE = 2,  /* data write */
    VTX_MODIFY = 3, /* data read and write by one instruction */
    VTX_IMPLICIT_SUPERVISOR = 4 /* flag: system-structure access, supervisor-mode at any CPL */
};

enum vtx_status {
    VTX_OK = 0,
    VTX_PAGE_FAULT = 1,           /* #PF: error_code, gva */
    VTX_NON_CANONICAL = 2,        /* #GP or #SS, before any walk */
    VTX_EPT_VIOLATION = 3,        /* qualification, gpa, gva */
    VTX_EPT_MISCONFIGURATION = 4, /* gpa */
    VTX_PML_FULL = 5,             /* gpa, gva; no accessed or dirty flag was set */
    VTX_SPP_MISS = 6,             /* gpa, gva */
    VTX_SPP_MISCONFIGURATION = 7, /* gpa, gva */
    VTX_BEYOND_MEMORY = 8, /* fault_address is a physical address beyond memory */
    VTX_INSTRUCTION = 9,   /* run: an instruction record that Python decides; operand */
    VTX_END = 10,          /* run: reached stop */
    VTX_BAD_RECORD = 11,   /* run: an instruction record outside the dispositions; operand */
    VTX_APIC_ACCESS = 12   /* run: a reference to the APIC-access page; gva, hpa */
};

/* ---- What a processor is (fixed) and what it runs under (changes) ------------------------ */

enum vtx_limits {
    VTX_MAX_ARRAYS = 16,
    VTX_MAX_STEPS = 128,
    VTX_MAX_CACHES = 3,
    VTX_PAGE_4K = 1,
    VTX_PAGE_2M = 2,
    VTX_PAGE_1G = 4,
    VTX_INSTRUCTION_SIDE = 1,
    VTX_DATA_SIDE = 2
};

/* Which entry of a set goes when a new one comes. VTX_TREE_PLRU: `ways` is a power of two, at most
 * 64. VTX_RANDOM: a way number from xorshift64 (shifts 13, 7, 17), bits 63:32 modulo `ways`. */
enum vtx_replacement { VTX_LRU = 0, VTX_TREE_PLRU = 1, VTX_RANDOM = 2 };

typedef struct {
    uint32_t level;   /* 1 or 2 */
    uint32_t sides;   /* VTX_INSTRUCTION_SIDE | VTX_DATA_SIDE */
    uint32_t pages;   /* VTX_PAGE_* that it holds */
    uint32_t entries; /* a multiple of ways; entries / ways is a power of two */
    uint32_t ways;
    uint32_t replacement; /* enum vtx_replacement */
    uint32_t seed;        /* VTX_RANDOM: of its generator */
} vtx_tlb_array;

/* A data cache that the walker's references go through; lines have 64 bytes. */
typedef struct {
    uint64_t bytes; /* a multiple of 64 * ways; 0: there is no such level */
    uint32_t ways;
    uint32_t replacement; /* enum vtx_replacement */
    uint32_t seed;        /* VTX_RANDOM: of its generator */
    uint32_t pad;
} vtx_cache;

typedef struct {
    uint64_t ept_vpid_cap; /* IA32_VMX_EPT_VPID_CAP */
    uint32_t maxphyaddr;
    uint32_t linear_bits;
    uint32_t page_1g; /* guest paging has 1-GByte pages */
    uint32_t pml5, pml4, pdpt, pd; /* entries of the paging-structure caches, 0 for none */
    uint32_t guest_physical;       /* entries of the TLB for guest-physical mappings */
    uint32_t array_count;
    vtx_tlb_array arrays[16];
    vtx_cache caches[3]; /* first to third level; all of 0 bytes: not modelled, at no cost */
} vtx_shape;

enum vtx_controls {
    VTX_ENABLE_EPT = 1,
    VTX_MODE_BASED_EXECUTE = 2,
    VTX_ENABLE_PML = 4,
    VTX_SUB_PAGE_WRITE = 8,       /* "sub-page write permissions for EPT" */
    VTX_PAGING_WRITE = 16,        /* "EPT paging-write control" */
    VTX_VERIFY_GUEST_PAGING = 32, /* "guest-paging verification" */
    VTX_ENABLE_HLAT = 64
};

/* What VM entry fixes for the walker, in one flat structure. pml_index is the one member that the
 * core changes; it comes last so that the rest can be compared as a block. */
typedef struct {
    uint64_t cr0, cr3, cr4, efer, rflags;
    uint64_t eptp;
    uint64_t pml_address;
    uint64_t apic_access; /* the APIC-access page | 1 while references to it are Python's, or 0 */
    uint64_t pdptes[4]; /* PAE paging: the PDPTE registers */
    uint64_t spptp;     /* sub-page-permission-table pointer */
    uint64_t hlatp;     /* hypervisor-managed linear-address translation pointer */
    uint32_t pkru, pkrs;
    uint32_t controls; /* enum vtx_controls */
    uint32_t hlat_prefix_size;
    uint16_t vpid;     /* 0 in root operation and with "enable VPID" 0 */
    uint16_t cpl;
    uint16_t pml_index;
    uint16_t pad;
} vtx_context;

/* ---- What a translation says -------------------------------------------------------------- */

enum vtx_source { VTX_FROM_WALK = 0, VTX_FROM_L1 = 1, VTX_FROM_L2 = 2, VTX_FROM_IDENTITY = 3 };

typedef struct {
    uint32_t status; /* enum vtx_status */
    uint32_t access; /* enum vtx_access */
    uint64_t gva;
    uint64_t gpa; /* valid if gpa_valid: a TLB hit does not know it */
    uint64_t hpa;
    uint64_t qualification; /* EPT violation */
    uint64_t fault_address; /* VTX_BEYOND_MEMORY: the physical address */
    uint64_t guest_entry;   /* last guest entry read */
    uint64_t ept_entry;     /* last EPT entry read (bit 63: suppress #VE) */
    uint32_t error_code;    /* #PF */
    uint32_t step_count;    /* steps recorded */
    uint64_t operand;       /* instruction record: its payload */
    uint8_t gpa_valid;
    uint8_t source;      /* enum vtx_source */
    uint8_t guest_shift; /* log2 of the guest page size; 0 without guest paging */
    uint8_t ept_shift;   /* log2 of the EPT page size; 0 without EPT */
    uint8_t page_shift;  /* log2 of the effective page size */
    uint8_t guest_level; /* level of the last guest entry used */
    uint8_t ept_level;   /* level of the last EPT entry used */
    uint8_t translated;  /* EPT event on the final access (1), on a guest entry (0) */
    uint8_t user;        /* guest rights of a translation that succeeded */
    uint8_t writable;
    uint8_t executable;
    uint8_t global;
    uint8_t protection_key;
    uint8_t pat_index;       /* PAT, PCD, PWT of the guest leaf, bits 2, 1, 0 */
    uint8_t ept_memory_type; /* EPT leaf bits 5:3 */
    uint8_t ignore_pat;      /* EPT leaf bit 6 */
} vtx_walk;

enum vtx_dimension { VTX_GUEST = 1, VTX_EPT = 2, VTX_LOG = 3, VTX_SPP = 4 };
enum vtx_step_kind {
    VTX_READ = 0,
    VTX_WRITE = 1,
    VTX_CACHED = 2 /* not a reference: a paging-structure cache or nested TLB answered */
};

/* Which data cache had the entry that a walk through the TLBs read. */
enum vtx_hit {
    VTX_HIT_UNKNOWN = 0, /* no reference, or data caches are not modelled */
    VTX_HIT_L1 = 1,
    VTX_HIT_L2 = 2,
    VTX_HIT_L3 = 3,
    VTX_HIT_MEMORY = 4
};

/* One reference of a walk, in order. */
typedef struct {
    uint64_t address; /* host-physical */
    uint64_t gpa;     /* guest-physical: of the guest entry, or what the EPT walk translates */
    uint64_t value;   /* read: the entry; write: its new value; cached: the address it gives */
    uint8_t dimension;
    uint8_t level;       /* of the entry; cached EPT level 0: nested TLB */
    uint8_t guest_level; /* EPT steps: the guest level they serve, 0 for the final access */
    uint8_t kind;
    uint8_t size; /* bytes */
    uint8_t hit;  /* enum vtx_hit */
    uint8_t pad[2];
} vtx_step;

/* One row of vtx_translate_many. */
typedef struct {
    uint64_t hpa, gpa, qualification;
    uint32_t status, error_code;
    uint8_t page_shift, source, gpa_valid, translated;
    uint32_t pad;
} vtx_translation;

/* Arrays of 4 count by kind of access (fetch, load, store, modify), arrays of 6 by level (1 to 5),
 * arrays of 3 by page size (4K, 2M, 1G); guest_walk and ept_walk by data cache. A reference counts where it completes; see run.c. */
typedef struct {
    uint64_t references[4];
    uint64_t instructions; /* instruction records passed without leaving the run loop */
    uint64_t page_crossings;
    uint64_t l1i_hits, l1i_misses;
    uint64_t l1d_hits, l1d_misses;
    uint64_t l2i_hits, l2i_misses;
    uint64_t l2d_hits, l2d_misses;
    uint64_t rewalks; /* hits whose rights or dirty flag did not suffice, walked again */
    uint64_t walks;   /* walks that ended in a translation */
    uint64_t walks_stopped;
    uint64_t fills[3];
    uint64_t guest_references[6];
    uint64_t ept_references[6];
    uint64_t guest_cache_hits[6]; /* paging-structure caches: level of the entry that was skipped */
    uint64_t ept_cache_hits[6];
    uint64_t nested_hits, nested_misses;
    uint64_t guest_flag_writes; /* accessed and dirty flags */
    uint64_t ept_flag_writes;
    uint64_t pml_writes;
    uint64_t page_faults, non_canonical, ept_violations, ept_misconfigurations, pml_full;
    uint64_t spp_references; /* entries of the sub-page-permission table read */
    uint64_t spp_misses, spp_misconfigurations;
    uint64_t beyond_memory;
    uint64_t invalidations; /* operations */
    uint64_t invalidated;   /* entries that they removed */
    uint64_t guest_walk[4]; /* guest_references by enum vtx_hit - 1, if data caches are modelled */
    uint64_t ept_walk[4];   /* ept_references likewise */
} vtx_counters;

/* ---- The translation unit of one logical processor (mmu.c) -------------------------------- */

typedef struct vtx_mmu vtx_mmu;

/* Why vtx_mmu_new refuses a shape, as a sentence; NULL if it does not. */
const char *vtx_shape_error(const vtx_shape *shape);
/* The memory must outlive the handle. NULL without memory, or if vtx_shape_error has something. */
vtx_mmu *vtx_mmu_new(vtx_memory *memory, const vtx_shape *shape);
void vtx_mmu_free(vtx_mmu *mmu);
vtx_counters *vtx_mmu_counters(vtx_mmu *mmu);
/* Grows whenever a translation that was cached may have become invalid. */
uint64_t vtx_mmu_generation(const vtx_mmu *mmu);

/* Translate through the TLBs (vtx_translate) or by a walk that neither uses nor fills any cache and
 * counts nothing (vtx_walk_tables; accessed and dirty flags are set all the same). `steps` may be NULL, else it
 * holds `capacity` steps. Both return out->status. */
uint32_t vtx_translate(vtx_mmu *mmu, vtx_context *context, uint64_t gva, uint32_t access,
                       vtx_walk *out, vtx_step *steps, uint32_t capacity);
uint32_t vtx_walk_tables(vtx_mmu *mmu, vtx_context *context, uint64_t gva, uint32_t access,
                         vtx_walk *out, vtx_step *steps, uint32_t capacity);
typedef struct {
    vtx_mmu *mmu;
    vtx_context *context;
    uint64_t gva;
} vtx_fetch;
/* This instruction fetch as vtx_translate makes it, if the first-level TLB translates it. Otherwise
 * 0, and as if it had not been asked for. */
int vtx_fetch_hit(const vtx_fetch *fetch);
/* `access_stride` 0: one access for all. */
void vtx_translate_many(vtx_mmu *mmu, vtx_context *context, uint64_t count, const uint64_t *gvas,
                        const uint8_t *accesses, uint32_t access_stride, vtx_translation *out);
/* vtx_walk_tables for each; `side_by_side` 1: so that walks that wait for memory overlap. The walks
 * must not depend on each other: what one of them finds is then the same in any order. */
void vtx_walk_many(vtx_mmu *mmu, vtx_context *context, uint64_t count, const uint64_t *gvas,
                   const uint8_t *accesses, uint32_t access_stride, uint32_t side_by_side,
                   vtx_translation *out);
/* Translate a guest-physical address alone, as a data read (PDPTE loads) or another access. */
uint32_t vtx_translate_guest_physical(vtx_mmu *mmu, vtx_context *context, uint64_t gpa,
                                      uint32_t access, vtx_walk *out, vtx_step *steps,
                                      uint32_t capacity);

enum vtx_run_flags {
    VTX_FIRST_PAGE_ONLY = 1 /* a reference that crosses a page is its first page only */
};

/* Consume records[*index .. stop); on return *index is the record that stopped it, or stop. */
uint32_t vtx_run(vtx_mmu *mmu, vtx_context *context, const uint64_t *records, uint64_t *index,
                 uint64_t stop, const uint8_t *dispositions, uint64_t disposition_count,
                 uint32_t flags, vtx_walk *out);

/* ---- Ceilings for benchmarks (bench_ceiling.c) -------------------------------------------- */

/* Plain loads for the walks of `count` addresses through 4-level tables of 4-KByte pages in both
 * dimensions; the second overlaps 16 at a time (count is a multiple). The sum of what they find. */
uint64_t vtx_ceiling_walks(vtx_memory *memory, uint64_t cr3, uint64_t eptp, uint64_t count,
                           const uint64_t *gvas);
uint64_t vtx_ceiling_walks_side_by_side(vtx_memory *memory, uint64_t cr3, uint64_t eptp,
                                        uint64_t count, const uint64_t *gvas);
/* One direct-mapped look at each record: how many found their page. */
uint64_t vtx_ceiling_run(const uint64_t *records, uint64_t count);

/* ---- Invalidation (invalidate.c) ----------------------------------------------------------- */

/* Instructions act on the VPID of `context` (SDM, "Operations that Invalidate Cached Mappings"). */
void vtx_invlpg(vtx_mmu *mmu, const vtx_context *context, uint64_t gva);
/* Types 0 to 3; 0 if the type is none of them. */
int vtx_invpcid(vtx_mmu *mmu, const vtx_context *context, uint32_t type, uint16_t pcid,
                uint64_t gva);
/* All but global mappings of one PCID: MOV to CR3. */
void vtx_flush_pcid(vtx_mmu *mmu, const vtx_context *context, uint16_t pcid);
/* All mappings of the VPID, global ones too: MOV to CR4 that changes PGE, and the like. */
void vtx_flush_vpid(vtx_mmu *mmu, uint16_t vpid);
/* Types 1 and 2; 0 if the type is none of them. */
int vtx_invept(vtx_mmu *mmu, uint32_t type, uint64_t eptp);
/* Types 0 to 3; 0 if the type is none of them. */
int vtx_invvpid(vtx_mmu *mmu, uint32_t type, uint16_t vpid, uint64_t gva);
/* Everything: reset. */
void vtx_flush_all(vtx_mmu *mmu);

/* ---- VM-exit traces as text (exits.c) ------------------------------------------------------ */

enum vtx_exit_event {
    VTX_EVENT_OTHER = 0,
    VTX_EVENT_EXIT = 1,
    VTX_EVENT_ENTRY = 2,
    VTX_EVENT_PAGE_FAULT = 3,
    VTX_EVENT_MSR = 4,
    VTX_EVENT_PIO = 5,
    VTX_EVENT_MMIO = 6,
    VTX_EVENT_INJECT = 7,    /* kvm_inj_virq */
    VTX_EVENT_EXCEPTION = 8, /* kvm_inj_exception */
    VTX_EVENT_NESTED = 9,    /* kvm_nested_vmexit */
    VTX_EVENT_REFLECTED = 10, /* kvm_nested_vmexit_inject */
    VTX_EVENT_USERSPACE = 11,
    VTX_EVENT_CPUID = 12,
    VTX_EVENT_XEN_EXIT = 13,
    VTX_EVENT_XEN_ENTRY = 14,
    VTX_EVENT_KINDS = 16
};

enum vtx_exit_flag {
    VTX_EXIT_TIME = 1,
    VTX_EXIT_DURATION = 2,
    VTX_EXIT_RIP = 4,
    VTX_EXIT_INFO1 = 8, /* exit qualification */
    VTX_EXIT_INFO2 = 16,
    VTX_EXIT_INTR_INFO = 32,
    VTX_EXIT_ERROR_CODE = 64,
    VTX_EXIT_ENTERED = 128,    /* an entry of the same vCPU followed */
    VTX_EXIT_BACKWARDS = 256,  /* and its stamp lies before the exit's */
    VTX_EXIT_FAILED = 512,     /* VM-entry failure: bit 31 of the exit reason */
    VTX_EXIT_L2 = 1024,        /* out of a nested guest */
    VTX_EXIT_REFLECTED = 2048, /* and handed to its L1 hypervisor */
    VTX_EXIT_WRITE = 4096,     /* the detail is a write */
    VTX_EXIT_FAULTED = 8192,   /* the MSR access ended in #GP */
    VTX_EXIT_INJECTED = 16384, /* an interrupt was injected before the entry */
    VTX_EXIT_OLD_INFO = 32768  /* "info A B": B is interruption or IDT-vectoring information */
};

enum vtx_exit_skip {
    VTX_SKIP_BLANK = 0,
    VTX_SKIP_COMMENT = 1,
    VTX_SKIP_OTHER_EVENT = 2,
    VTX_SKIP_NO_EVENT = 3,
    VTX_SKIP_CUT = 4,
    VTX_SKIP_TOO_LONG = 5,
    VTX_SKIP_LOST = 6, /* the tracer's own note that it lost events */
    VTX_SKIP_KINDS = 7
};

/* One VM exit with what was traced until the entry after it. */
typedef struct {
    uint64_t time_ns;     /* VTX_EXIT_TIME */
    uint64_t duration_ns; /* VTX_EXIT_DURATION: from the exit to the entry */
    uint64_t rip, info1, info2;
    uint64_t detail; /* detail_kind: guest-physical address, MSR, port, or CPUID leaf */
    uint64_t value;  /* what was read or written; the error code of a page fault */
    uint64_t line;   /* of the exit, from 1 */
    uint64_t run_line; /* of the first of the exits that repeat each other up to this one */
    uint32_t intr_info, error_code;
    uint32_t tid; /* thread, or Xen domain; 0: unknown */
    int32_t vcpu; /* -1: unknown */
    uint32_t flags;
    uint16_t reason;      /* index of the name */
    uint16_t userspace;   /* index + 1 of the name of the user-space exit; 0: none */
    uint16_t cpu;         /* 0xffff: unknown */
    uint16_t vector;      /* VTX_EXIT_INJECTED */
    uint8_t detail_kind;  /* enum vtx_exit_event of the event that told, 0: none */
    uint8_t detail_size;  /* bytes of an I/O or memory access */
    uint16_t pad;
    uint32_t repeats; /* how many exits before it, one after the other in its thread, were the same:
                       * reason, rip and page */
    uint32_t pad2;
} vtx_exit;

typedef struct {
    uint64_t read, used;
    uint64_t skipped[7];  /* by enum vtx_exit_skip; used + skipped = read */
    uint64_t events[16];  /* by enum vtx_exit_event */
    uint64_t joined;      /* lines that continued the line before */
    uint64_t lost_events; /* as the tracer counted them */
    uint64_t backwards;   /* entries whose stamp lies before their exit's */
    uint64_t untimed;     /* exits without a stamp */
    uint64_t ticks;       /* stamps without a unit, not used */
    uint64_t fraction_digits; /* most digits after the point of a stamp */
    uint64_t bare;            /* exits on lines that name no thread */
} vtx_exit_counts;

typedef struct vtx_exits vtx_exits;

vtx_exits *vtx_exits_new(void);
void vtx_exits_free(vtx_exits *scanner);
/* Read lines from `bytes`, in which no-break spaces become blanks. Returns how many bytes are done
 * with: the caller gives the rest again, with more behind it; it stops early if `out` is full.
 * `final`: nothing more will come. UINT64_MAX: out of memory. */
uint64_t vtx_exits_scan(vtx_exits *scanner, char *bytes, uint64_t length, int final, vtx_exit *out,
                        uint64_t capacity, uint64_t *count);
/* The exits that no entry followed; call until it returns 0. */
uint64_t vtx_exits_close(vtx_exits *scanner, vtx_exit *out, uint64_t capacity);
const vtx_exit_counts *vtx_exits_counted(const vtx_exits *scanner);
uint64_t vtx_exits_name_count(const vtx_exits *scanner);
/* Exit reasons and user-space exits as they were printed. */
const char *vtx_exits_name(const vtx_exits *scanner, uint64_t index);

/* ---- What exits come to (exits_subject.c, exits_tally.c) -------------------------------------- */

/* What an exit was about. A subject is kind << 48 | value << 1; bit 0 is free. */
enum vtx_exit_subject {
    VTX_SUBJECT_NONE = 0,
    VTX_SUBJECT_PORT = 1,
    VTX_SUBJECT_MSR = 2,
    VTX_SUBJECT_CR = 3,
    VTX_SUBJECT_DR = 4,
    VTX_SUBJECT_REGION = 5, /* 2 MBytes of guest-physical addresses */
    VTX_SUBJECT_VECTOR = 6,
    VTX_SUBJECT_EXCEPTION = 7,
    VTX_SUBJECT_LEAF = 8,
    VTX_SUBJECT_APIC = 9,
    VTX_SUBJECT_EOI = 10
};
/* Stands for all subjects beyond the limit. */
#define VTX_SUBJECT_OTHERS 0xffffffffffffe

/* 0: not known. */
uint64_t vtx_exit_subject_of(const vtx_exit *exit, uint32_t subject);

enum vtx_tally_table {
    VTX_TALLY_ROWS = 0,    /* key: row */
    VTX_TALLY_DETAILS = 1, /* key: row; part: subject, and in bit 0 whether a nested guest ran */
    VTX_TALLY_VCPUS = 2,   /* key: thread or domain << 32 | vCPU where the thread does not tell; part: row */
    VTX_TALLY_SLICES = 3,  /* key: time / slice; part: row */
    VTX_TALLY_TABLES = 4
};

typedef struct {
    uint64_t key, part;
    uint64_t samples, timed; /* timed: those whose duration is known; the rest is of these */
    uint64_t total, least, most;
    double mean, squares; /* squares: of the distances from the mean */
    int32_t vcpu;         /* the last that was named, or -1 */
    uint32_t pad;
} vtx_tally_entry;

typedef struct {
    uint64_t samples, first_ns, last_ns; /* first_ns > last_ns: no exit has a stamp */
    uint32_t flags;                      /* of all exits together */
    uint32_t pad;
} vtx_tally_summary;

typedef struct vtx_tally vtx_tally;

vtx_tally *vtx_tally_new(uint64_t slice_ns, int per_vcpu);
void vtx_tally_free(vtx_tally *all);
/* `rows` and `subjects` by the exits' `reason`. 0: out of memory. */
int vtx_tally_add(vtx_tally *all, const vtx_exit *exits, uint64_t count, const uint16_t *rows,
                  const uint8_t *subjects, int xen);
const vtx_tally_summary *vtx_tally_summarised(const vtx_tally *all);
uint64_t vtx_tally_count(const vtx_tally *all, uint32_t table);
int vtx_tally_at(const vtx_tally *all, uint32_t table, uint64_t index, vtx_tally_entry *out);
/* Nearest-rank percentiles of some tallies of a table together. 2: done; 1: no durations; 0: out of
 * memory, or no such tally. `*bits`: 64 if they are exact, else each is within 2^-bits of itself. */
int vtx_tally_percentiles(const vtx_tally *all, uint32_t table, const uint64_t *indices,
                          uint64_t count, const uint32_t *percents, uint64_t wanted, uint64_t *out,
                          uint32_t *bits);
/* How many exits of a tally took less than `limit`, and how long together. 0: no such tally. */
int vtx_tally_below(const vtx_tally *all, uint32_t table, uint64_t index, uint64_t limit,
                    uint64_t *count, uint64_t *total);

/* ---- Reference streams (streams.c) --------------------------------------------------------- */

enum vtx_stream_format {
    VTX_STREAM_LACKEY = 0,     /* valgrind --tool=lackey --trace-mem=yes: text */
    VTX_STREAM_DRMEMTRACE = 1, /* DynamoRIO trace_entry_t of 8, 12 or 16 bytes */
    VTX_STREAM_CHAMPSIM = 2,   /* ChampSim input_instr: 64 bytes */
    VTX_STREAM_CLOUDSUITE = 3  /* ChampSim cloudsuite_instr: 96 bytes */
};

/* Why a line, an entry or an instruction gave no reference. */
enum vtx_stream_skip {
    VTX_STREAM_BLANK = 0,
    VTX_STREAM_MESSAGE = 1,   /* a line of valgrind itself, ==pid== */
    VTX_STREAM_OTHER = 2,     /* a line of the traced program; an entry of an unknown type */
    VTX_STREAM_MALFORMED = 3, /* begins as a reference and is none */
    VTX_STREAM_NON_CANONICAL = 4,
    VTX_STREAM_EMPTY = 5, /* of no bytes */
    VTX_STREAM_PREFETCH = 6,
    VTX_STREAM_FLUSH = 7,
    VTX_STREAM_NO_FETCH = 8, /* a further iteration of a string instruction */
    VTX_STREAM_MARKER = 9,
    VTX_STREAM_ENCODING = 10,
    VTX_STREAM_IDENTITY = 11, /* says which thread or process follows */
    VTX_STREAM_FRAME = 12,    /* header, footer */
    VTX_STREAM_FILTERED = 13, /* another thread or process was asked for */
    VTX_STREAM_CUT = 14,      /* the file ends in the middle of it */
    VTX_STREAM_SKIP_KINDS = 15
};

typedef struct {
    uint64_t read;        /* lines, entries or instructions */
    uint64_t used;        /* those that gave references; used + skipped = read */
    uint64_t skipped[15]; /* by enum vtx_stream_skip */
    uint64_t kinds[4];    /* references by kind of access */
    uint64_t dropped;     /* single addresses that are not canonical */
    uint64_t split;       /* references of more than 4096 bytes, which became several */
    uint64_t malformed;   /* number, from 1, of the first malformed line or entry; 0 for none */
    uint64_t threads;     /* that an entry named */
    uint64_t version;     /* of the format, as the header says */
} vtx_stream_counts;

typedef struct vtx_scanner vtx_scanner;

/* `entry_bytes`: of a drmemtrace entry (8, 12, 16). NULL without memory or for another value. */
vtx_scanner *vtx_scanner_new(uint32_t format, uint32_t entry_bytes);
void vtx_scanner_free(vtx_scanner *scanner);
/* Only the references of one process or one thread (of drmemtrace). */
void vtx_scanner_only_pid(vtx_scanner *scanner, uint64_t pid);
void vtx_scanner_only_tid(vtx_scanner *scanner, uint64_t tid);
/* Make records of `bytes`. Returns how many bytes are done with: the caller gives the rest again,
 * with more behind it; it stops early if `out` (at least 32 records) is full, and behind a malformed
 * line or entry if `strict`. `final`: nothing more will come. */
uint64_t vtx_scanner_scan(vtx_scanner *scanner, const char *bytes, uint64_t length, int final,
                          int strict, uint64_t *out, uint64_t capacity, uint64_t *count);
const vtx_stream_counts *vtx_scanner_counted(const vtx_scanner *scanner);
/* The first record that is no reference (a fetch of no bytes, or more than 4096 bytes); `count` if
 * all are. The references are added to kinds[4], unless it is NULL. */
uint64_t vtx_stream_check(const uint64_t *records, uint64_t count, uint64_t *kinds);

/* ---- TLBs by geometry (tlbsim*.c) ----------------------------------------------------------- */

enum vtx_sim_limits {
    VTX_SIM_ARRAYS = 32,
    VTX_SIM_SLOTS = 16, /* levels as they are named: l1i, l1d, l2 and so on */
    VTX_SIM_LEVELS = 4,
    VTX_SIM_RANGES = 64,
    VTX_SIM_WAYS = 4096
};

enum vtx_sim_replacement { VTX_SIM_LRU = 0, VTX_SIM_TREE_PLRU = 1, VTX_SIM_RANDOM = 2 };
enum vtx_sim_index { VTX_SIM_MODULO = 0, VTX_SIM_XOR = 1 };
enum vtx_sim_flags {
    VTX_SIM_FETCHES = 1,     /* instruction fetches are used */
    VTX_SIM_DATA = 2,        /* loads, stores and modifies are used */
    VTX_SIM_FIRST_PAGE = 4,  /* a reference that crosses a page is its first page only */
    VTX_SIM_MODIFY_TWICE = 8, /* a modify is two accesses, not one */
    VTX_SIM_PORTABLE = 16, /* without the processor's vector instructions: the same, slower */
    VTX_SIM_NARROW = 32    /* without its vectors of 512 bits: the same, slower */
};

typedef struct {
    uint32_t level; /* 1 to VTX_SIM_LEVELS */
    uint32_t slot;  /* where it counts */
    uint32_t sides; /* VTX_INSTRUCTION_SIDE | VTX_DATA_SIDE */
    uint32_t pages; /* VTX_PAGE_* that it holds */
    uint32_t sets, ways;
    uint32_t replacement, index;
    uint64_t seed; /* random replacement */
} vtx_sim_array;

/* Addresses start to stop - 1 lie in pages of `size` (0: 4K, 1: 2M, 2: 1G). */
typedef struct {
    uint64_t start, stop;
    uint32_t size;
    uint32_t pad;
} vtx_sim_range;

/* Which sizes pages have: by address, else by the side of the access. */
typedef struct {
    uint32_t size[2]; /* instruction, data */
    uint32_t range_count;
    uint32_t pad;
    vtx_sim_range ranges[64]; /* in ascending order, apart from each other */
} vtx_sim_pages;

typedef struct {
    uint32_t flags;
    uint32_t array_count;
    vtx_sim_array arrays[32];
    vtx_sim_pages guest, ept;
    uint32_t guest_levels; /* 4 or 5 */
    uint32_t ept_levels;   /* 4 or 5; 0 without virtualization */
    uint32_t guest_cache[6], ept_cache[6]; /* entries of paging-structure caches, by level */
    uint32_t nested;                       /* entries of the TLB for guest-physical mappings */
    uint32_t pad;
    uint64_t table_base; /* guest-physical address from which the guest's tables are laid out */
} vtx_sim_geometry;

/* Arrays of 4 count by kind of access, arrays of 6 by level of the entry. */
typedef struct {
    uint64_t hits[4], misses[4];
} vtx_sim_slot;

typedef struct {
    uint64_t records[4]; /* as the stream has them */
    uint64_t accesses[4];
    uint64_t crossings;
    vtx_sim_slot slots[16];
    uint64_t walks[4];
    uint64_t guest_references[6], ept_references[6];
    uint64_t guest_cache_hits[6], ept_cache_hits[6];
    uint64_t nested_hits, nested_misses;
} vtx_sim_counts;

typedef struct vtx_sim vtx_sim;

/* Why vtx_sim_new refuses a geometry, as a sentence; NULL if it does not. */
const char *vtx_sim_error(const vtx_sim_geometry *geometry);
/* NULL without memory, or if vtx_sim_error has something. */
vtx_sim *vtx_sim_new(const vtx_sim_geometry *geometry);
void vtx_sim_free(vtx_sim *sim);
/* Let every geometry see the records: each in pieces that stay in a processor's cache. 1 on
 * success, 0 if a walk found no memory for the layout of the guest's tables. */
int vtx_sim_run(vtx_sim *const *sims, uint64_t sim_count, const uint64_t *records,
                uint64_t count);
void vtx_sim_counted(const vtx_sim *sim, vtx_sim_counts *out);
/* For benchmarks, the least that could stand for a simulation: count kinds, and the records whose
 * page is not the last used one of its 16 sets. Returns the latter. */
uint64_t vtx_sim_least(const uint64_t *records, uint64_t count, uint64_t kinds[4]);
