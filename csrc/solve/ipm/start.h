/* The start of the interior point method. */
#ifndef WF_SOLVE_IPM_START_H
#define WF_SOLVE_IPM_START_H

#include "solve/ipm/state.h"
#include "wfcast.h"

/* All arrays of the state and the scratch, in one arena that the caller frees. */
wf_status wf_ipm_allocate(wf_ipm_state *s, wf_ipm_room *room);
/* The scale and the first point, inside all bounds. */
void wf_ipm_start(wf_ipm_state *s, const wf_ipm_room *room);

#endif
