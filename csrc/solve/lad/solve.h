/* After a band pass: a unit on what was kept. */
#ifndef WF_SOLVE_LAD_SOLVE_H
#define WF_SOLVE_LAD_SOLVE_H

#include "solve/lad/unit.h"

/* With the joined bands of the unit. What it shows goes to best, value and bound; the unit is done,
 * or waits for a pass with a new centre and other widths. */
wf_unit_solver wf_band_solve;

#endif
