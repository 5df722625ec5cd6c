/* How far forecasts are from the last input. */
#ifndef WF_KERNELS_MOVES_H
#define WF_KERNELS_MOVES_H

#include "wfcast.h"

/* Sums over n elements y and x of one dtype, contiguous. Rows where y - x is not finite take no
 * part. */
wf_moves wf_moves_between(wf_dtype dtype, ptrdiff_t n, const void *y, const void *x);

#endif
