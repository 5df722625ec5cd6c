/* The band pass: sort the rows of every unit that takes part into kept and dropped ones. */
#ifndef WF_SOLVE_LAD_BAND_H
#define WF_SOLVE_LAD_BAND_H

#include "solve/method.h"
#include "solve/scan.h"

/* Into the bands of the lane (wf_band_prepare), for wf_scan with the fit as context and room for so
 * many numbers. */
wf_visitor wf_band_visit;
ptrdiff_t wf_band_room(const wf_fit *fit);

#endif
