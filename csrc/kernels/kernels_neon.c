/* The kernels in NEON, which every ARM64 processor has: no target region is needed. */
#if defined(__aarch64__)
#include <stdint.h>

#include "kernels/simd_neon.h"

#include "kernels/kernels_body.h"
#else
typedef int wf_no_neon_here;
#endif
