/* Interior point method for least absolute deviations with the hinge, on rows held in memory.
 *
 *   minimise over z   F(z) = sum_part sum_i |x_i'z_part - y_i|  +  g'z  +  constant
 *                          + eta * sum_s max(0, sum_{i in s} |x_i'(z_0 - z_1) - y_i| + u_s'(z_0 -
 * z_1) - c_s)
 *
 * One part of q unknowns, or two and the hinge on their difference. A primal-dual
 * predictor-corrector method (Mehrotra 1992; Portnoy and Koenker 1997 for one part); normal
 * equations in the parts * q unknowns only. */
#ifndef WF_SOLVE_IPM_H
#define WF_SOLVE_IPM_H

#include "wfcast.h"

typedef struct {
    ptrdiff_t n;
    const double *x; /* n x q, column-major */
    const double *y; /* n */
} wf_rows;

typedef struct {
    int parts; /* 1 or 2 */
    ptrdiff_t q;
    wf_rows part[2];
    wf_rows difference;   /* n = 0 without a hinge */
    const int32_t *group; /* of each difference row, 0..n_groups-1 */
    ptrdiff_t n_groups;   /* 0 without a hinge */
    const double *c;      /* n_groups */
    const double *u;      /* n_groups x q, row-major; NULL for zeros */
    double eta;
    const double *g; /* parts x q; NULL for zeros */
    double constant;
    double tol;   /* stop at this relative gap; what can be had beyond it at no cost is taken */
    double noise; /* absolute gap that double precision cannot tell from zero */
    int polish;   /* move to the vertex that the multipliers name */
} wf_ipm;

typedef struct {
    double *z;     /* parts x q; caller's */
    double primal; /* F(z) */
    double bound;  /* <= min F, from multipliers that balance to rounding, less what that rounding
                      may cost (doubt() in ipm_finish.c) */
} wf_ipm_result;

/* `stop` (may be NULL) is read between iterations: nonzero ends with WF_INTERRUPTED. */
wf_status wf_ipm_solve(const wf_ipm *problem, int (*stop)(void *), void *context,
                       wf_ipm_result *result);

#endif
