/* The sample: one row of every stride, and a unit solved on it. */
#ifndef WF_SOLVE_LAD_SAMPLE_H
#define WF_SOLVE_LAD_SAMPLE_H

#include "solve/lad/unit.h"

enum {
    /* Of the sample's columns, and of a problem that is loaded whole. */
    WF_LAD_SAMPLE_BYTES = 96 << 20
};

/* How many rows to sample; n_rows where the sample should be everything. */
ptrdiff_t wf_sample_rows(const wf_fit *fit);
/* Memory for one row of every `stride`, which the next pass takes, and its end. */
wf_status wf_sample_begin(wf_fit *fit, ptrdiff_t stride);
void wf_sample_end(wf_lad *s);
/* For wf_scan, with the fit as context. */
wf_visitor wf_sample_visit;
/* Sums of the sample's columns, scaled to all rows: what noise is measured by. */
void wf_sample_sums(wf_fit *fit);
/* The unit's centre and the widths of its bands; or where the sample is everything all there is to
 * know, and the unit is done. */
wf_unit_solver wf_sample_solve;

#endif
