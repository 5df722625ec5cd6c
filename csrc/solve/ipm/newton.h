/* The Newton system of the interior point method: assembled, reduced, and its solution expanded. */
#ifndef WF_SOLVE_IPM_NEWTON_H
#define WF_SOLVE_IPM_NEWTON_H

#include "solve/ipm/state.h"

/* At the current point: what its equations miss (rho, pi, zeta), the normal matrix M, and the
 * right-hand side that aims at products of 0 (the predictor's). */
void wf_newton_matrix(wf_ipm_state *s, const wf_ipm_room *room);
/* The right-hand side that aims at products of `target`, with the corrections of second order that
 * expanding the predictor left (the corrector's). */
void wf_newton_correct(wf_ipm_state *s, double target, const wf_ipm_room *room);
/* From dz to the steps of all rows and hinges; how far each may go (in [0, 1]), and what the
 * products become. As corrector with the target that the right-hand side was made for. */
wf_ipm_direction wf_newton_expand(wf_ipm_state *s, double target, int corrected,
                                  const wf_ipm_room *room);
/* The dlambda of the rows of a chunk: that of their hinge, or 0. */
void wf_newton_spread(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                      double *dlambda);

#endif
