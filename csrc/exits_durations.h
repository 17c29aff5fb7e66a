/* Durations of exits and how often each occurred, in bounded memory. */
#ifndef VTX_EXITS_DURATIONS_H
#define VTX_EXITS_DURATIONS_H

#include "core.h"

enum { DURATIONS_EXACT = 64 };

typedef struct {
    uint64_t *values; /* duration + 1; 0: free */
    uint64_t *counts;
    uint32_t capacity, used; /* capacity: 0 or a power of two */
    uint32_t bits;           /* significant bits that are kept, DURATIONS_EXACT for all */
} durations;

/* Both return 0 if memory is short. */
int durations_add(durations *set, uint64_t duration, uint64_t count, uint32_t limit);
/* Keep fewer bits until no more than `limit` different durations are left. */
int durations_coarsen(durations *set, uint32_t limit);
void durations_free(durations *set);

#endif
