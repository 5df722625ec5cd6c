/* Inside of the pass-based solver: what fit.c hands to a loss, and what a loss gives back. */
#ifndef WF_SOLVE_FIT_H
#define WF_SOLVE_FIT_H

#include "wfcast.h"

typedef struct wf_lad wf_lad;
typedef struct wf_least_squares wf_least_squares;

struct wf_fit {
    wf_fit_options options; /* first_update points to a copy */
    ptrdiff_t rows_seen;    /* in this pass */
    int needs_pass;
    wf_fit_info info;
    double *coef;      /* m x p */
    double *intercept; /* m */
    wf_lad *lad;
    wf_least_squares *least_squares;
};

wf_status wf_lad_new(wf_fit *fit);
void wf_lad_free(wf_lad *lad);
wf_status wf_lad_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group, ptrdiff_t start,
                            wf_fault *fault);
wf_status wf_lad_advance(wf_fit *fit, int (*interrupt)(void *), void *context);

wf_status wf_least_squares_new(wf_fit *fit);
void wf_least_squares_free(wf_least_squares *state);
wf_status wf_least_squares_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group,
                                      wf_fault *fault);
wf_status wf_least_squares_advance(wf_fit *fit, int (*interrupt)(void *), void *context);

/* An upper bound on (F - F*) / max(F*, R / tol), where R = 2 noise is what double precision
 * resolves of F: at most tol exactly where F - F* is at most tol F* or R. */
double wf_relative_gap(double value, double bound, double noise, double tol);

#endif
