/* The kernels in plain C, which every machine runs and all others are held to. */
#include "kernels/simd_scalar.h"

#include "kernels/kernels_body.h"
