/* The least a C test needs: CHECK counts, says where it failed, and main returns the outcome. */
#ifndef VTX_CHECK_H
#define VTX_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static unsigned long checks, failures;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        checks++;                                                                                  \
        if (!(condition)) {                                                                        \
            failures++;                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
        }                                                                                          \
    } while (0)

/* A test that cannot go on. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        CHECK(condition);                                                                          \
        if (failures)                                                                              \
            exit(1);                                                                               \
    } while (0)

static int outcome(void) {
    printf("%lu checks, %lu failed\n", checks, failures);
    return failures != 0;
}

/* xorshift64*: the same numbers on every system. */
static uint64_t random_state = 0x9E3779B97F4A7C15ull;
static inline uint64_t random64(void) {
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545F4914F6CDD1Dull;
}
static inline uint64_t below(uint64_t limit) {
    return random64() % limit;
}

#endif
