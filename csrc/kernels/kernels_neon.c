#if defined(__aarch64__)
#include <stdint.h>

#include "kernels/simd_neon.h"

#include "kernels/kernels_body.h"
#else
typedef int wf_no_neon_here;
#endif
