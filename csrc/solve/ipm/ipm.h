/* The interior point method, as its callers see it. */
#ifndef WF_SOLVE_IPM_IPM_H
#define WF_SOLVE_IPM_IPM_H

#include "solve/ipm/problem.h"
#include "wfcast.h"

typedef struct {
    double *z;     /* parts x q; caller's */
    double primal; /* F(z) */
    double bound;  /* <= min F, from multipliers that balance to rounding, less what that rounding
                    * may cost (doubt() in finish.c) */
} wf_ipm_result;

/* `stop` (may be NULL) is read between iterations: nonzero ends with WF_INTERRUPTED. */
wf_status wf_ipm_solve(const wf_ipm *problem, int (*stop)(void *), void *context,
                       wf_ipm_result *result);

#endif
