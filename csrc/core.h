/* What every C file of the core includes: the standard types that vtx_api.h needs, then that
 * header.
 *
 * vtx_api.h itself is read verbatim by cffi and may therefore hold no directive at all, not even
 * an include guard; this file carries the guard for it. */
#ifndef VTX_CORE_H
#define VTX_CORE_H

#include <stddef.h>
#include <stdint.h>

#include "vtx_api.h"

/* Keep a rare path out of the code of a hot one. A hint: empty where the compiler has none. */
#if defined(__GNUC__)
#define NOINLINE __attribute__((noinline))
#else
#define NOINLINE
#endif

#endif
