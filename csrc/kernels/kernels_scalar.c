#include "kernels/simd_scalar.h"

#include "kernels/kernels_body.h"
