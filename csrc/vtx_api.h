/* The interface of the C core.
 *
 * The compiler reads this file through core.h, and cffi reads it verbatim: no directives, no
 * attributes, no computed constants. Every handle is independent of every other one; nothing here
 * prints, exits or keeps a global. Distinct handles may be used by distinct threads. */

/* ---- Physical memory (mem.c) ------------------------------------------------------------ */

typedef struct vtx_memory vtx_memory;

/* One sparse mapping of `size` bytes that reads 0 until written; NULL if the system refuses (errno). */
vtx_memory *vtx_memory_new(uint64_t size, int huge_pages);
void vtx_memory_free(vtx_memory *memory);
uint64_t vtx_memory_size(const vtx_memory *memory);
/* First byte of the mapping, for buffers over physical memory. */
void *vtx_memory_base(vtx_memory *memory);
/* Give all pages back: memory reads 0 again. 0 on success. */
int vtx_memory_clear(vtx_memory *memory);
/* Bytes that the system has really given to the mapping. */
uint64_t vtx_memory_resident(const vtx_memory *memory);
/* Both return 1 if [address, address + length) lies within memory and was copied, else 0. */
int vtx_memory_read(const vtx_memory *memory, uint64_t address, void *out, uint64_t length);
int vtx_memory_write(vtx_memory *memory, uint64_t address, const void *from, uint64_t length);
