/* The end of the interior point method: a value, a bound that holds, and a vertex. All in scaled
 * units and without the constant. */
#ifndef WF_SOLVE_IPM_FINISH_H
#define WF_SOLVE_IPM_FINISH_H

#include "solve/ipm/state.h"
#include "wfcast.h"

/* F at z, from the rows alone. */
double wf_ipm_primal(const wf_ipm_state *s, const double *z);
/* A lower bound on min F from the multipliers of the current point, made to balance by way of its
 * factored matrix. `primal` is F at z. Overwrites the arrays of the step. */
double wf_ipm_bound(wf_ipm_state *s, double primal);
/* Replaces z by the vertex that the multipliers name, where that is no worse. WF_OK or
 * WF_NO_MEMORY. */
wf_status wf_ipm_polish(wf_ipm_state *s);

#endif
