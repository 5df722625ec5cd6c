/* Least absolute deviations with the hinge, on rows held in memory:
 *
 *   minimise over z
 *     F(z) = sum_part sum_i |x_i'z_part - y_i|  +  g'z  +  constant
 *          + eta sum_j max(0, sum_{i in j} |x_i'(z_0 - z_1) - y_i|  +  u_j'(z_0 - z_1)  -  c_j)
 *
 * One part of q unknowns, or two and hinges j on their difference. The g, u and constant stand for
 * rows whose signs are known. */
#ifndef WF_SOLVE_IPM_PROBLEM_H
#define WF_SOLVE_IPM_PROBLEM_H

#include <stddef.h>
#include <stdint.h>

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

#endif
