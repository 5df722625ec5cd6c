/* The life cycle of a fit: count rows, count passes, hand over to the loss. */
#include "solve/fit.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "solve/blas.h"

const char *wf_blas_config(void)
{
    return WF_BLAS(openblas_get_config)();
}

/* One BLAS thread inside each of ours. The library is a private copy: nobody else's setting
 * changes.
 */
static void set_blas(void)
{
    WF_BLAS(openblas_set_num_threads)(1);
}

static pthread_once_t blas_is_set = PTHREAD_ONCE_INIT;

double wf_relative_gap(double value, double bound, double noise, double tol)
{
    return (fmax(value - bound, 0) + noise) / fmax(fmax(bound, 2 * noise / tol), 1e-300);
}

wf_status wf_fit_new(const wf_fit_options *options, wf_fit **out)
{
    wf_status status = WF_NO_MEMORY;
    const size_t m = (size_t)options->m, p = (size_t)options->p, S = (size_t)options->n_groups;
    wf_fit *fit = calloc(1, sizeof *fit);
    if (!fit) {
        return status;
    }
    fit->options = *options;
    fit->options.first_update = NULL;
    fit->needs_pass = 1;
    fit->coef = calloc(m * p, sizeof *fit->coef);
    fit->intercept = calloc(m, sizeof *fit->intercept);
    double *first_update = malloc((S + 1) * sizeof *first_update);
    fit->options.first_update = first_update;
    if (!fit->coef || !fit->intercept || !first_update) {
        goto fail;
    }
    if (S) {
        memcpy(first_update, options->first_update, S * sizeof *first_update);
    }
    pthread_once(&blas_is_set, set_blas);
    status = options->loss == WF_ABSOLUTE_ERROR ? wf_lad_new(fit) : wf_least_squares_new(fit);
    if (status == WF_OK) {
        *out = fit;
        return status;
    }
fail:
    wf_fit_free(fit);
    return status;
}

void wf_fit_free(wf_fit *fit)
{
    if (fit) {
        wf_lad_free(fit->lad);
        wf_least_squares_free(fit->least_squares);
        free((void *)(uintptr_t)fit->options.first_update);
        free(fit->coef);
        free(fit->intercept);
        free(fit);
    }
}

int wf_fit_needs_pass(const wf_fit *fit)
{
    return fit->needs_pass;
}

wf_status wf_fit_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group, ptrdiff_t start,
                            wf_fault *fault)
{
    start = start < 0 ? fit->rows_seen : start;
    if (segment->n_rows > fit->options.n_here - fit->rows_seen ||
        segment->n_rows > fit->options.n_rows - start) {
        return WF_BAD_SEGMENTS;
    }
    const wf_status status = fit->lad ? wf_lad_accumulate(fit, segment, group, start, fault)
                                      : wf_least_squares_accumulate(fit, segment, group, fault);
    fit->rows_seen += segment->n_rows;
    return status;
}

wf_status wf_fit_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    if (fit->rows_seen != fit->options.n_rows) {
        return WF_BAD_SEGMENTS;
    }
    fit->rows_seen = 0;
    fit->info.n_passes++;
    return fit->lad ? wf_lad_advance(fit, interrupt, context)
                    : wf_least_squares_advance(fit, interrupt, context);
}

void wf_fit_result(const wf_fit *fit, double *coef, double *intercept, wf_fit_info *info)
{
    const size_t m = (size_t)fit->options.m, p = (size_t)fit->options.p;
    memcpy(coef, fit->coef, m * p * sizeof *coef);
    memcpy(intercept, fit->intercept, m * sizeof *intercept);
    *info = fit->info;
}
