/* What a fit is, and what a method for a loss brings.
 *
 * A fit goes over its data in passes (wfcast.h). Its life cycle (fit.c) and the exchange between
 * processes (exchange.c) are the same for every loss. What differs is in the method's table, which
 * is all that those two call. */
#ifndef WF_SOLVE_METHOD_H
#define WF_SOLVE_METHOD_H

#include <math.h>

#include "solve/wire.h"
#include "wfcast.h"

typedef struct {
    /* The solver, ready for the first pass. Where it fails, `free` takes what is there. */
    wf_status (*new)(wf_fit *fit);
    void (*free)(wf_fit *fit);
    /* One segment of a pass; its first row is row `start` of the whole fit. */
    wf_status (*accumulate)(wf_fit *fit, const wf_table *segment, ptrdiff_t group, ptrdiff_t start,
                            wf_fault *fault);
    /* Ends a pass: afterwards the fit is done, or ready for the next one. */
    wf_status (*advance)(wf_fit *fit, int (*interrupt)(void *), void *context);
    /* wf_fit_null */
    ptrdiff_t (*null)(const wf_fit *fit, double *out);
    /* A digest of all that must be the same in two processes for their statistics to add up. */
    uint64_t (*state)(const wf_fit *fit);
    /* The statistics of this pass, for the other processes. */
    wf_status (*export)(const wf_fit *fit, wf_writer *to);
    /* Those of all processes, in their order, in the place of its own. */
    wf_status (*absorb)(wf_fit *fit, ptrdiff_t n_messages, wf_message *message);
} wf_method;

struct wf_fit {
    wf_fit_options options; /* first_update points to a copy */
    ptrdiff_t rows_seen;    /* in this pass */
    int needs_pass;
    wf_fit_info info;
    double *coef;      /* m x p */
    double *intercept; /* m */
    const wf_method *method;
    void *solver; /* the method's own: a wf_lad or a wf_least_squares */
};

/* An upper bound on (F - F*) / max(F*, R / tol), where R = 2 noise is what double precision
 * resolves of F: at most tol exactly where F - F* is at most tol F* or R. The last term keeps 0 / 0
 * from being anything but 0. */
static inline double wf_relative_gap(double value, double bound, double noise, double tol)
{
    return (fmax(value - bound, 0) + noise) / fmax(fmax(bound, 2 * noise / tol), 1e-300);
}

#endif
