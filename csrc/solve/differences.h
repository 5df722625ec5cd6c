/* Sums of products of differences from one column, in float32 and float64; see differences.c. */
#ifndef WF_SOLVE_DIFFERENCES_H
#define WF_SOLVE_DIFFERENCES_H

#include "wfcast.h"

/* Of all columns less the last one with themselves. `flat` is coalesced and holds no float64.
 * *doubtful: a sum is not finite, or squares are so small that float32 may have lost them. */
wf_status wf_gram_differences(const wf_table *flat, int n_threads, double *out, int *doubtful);

#endif
