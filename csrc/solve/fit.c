/* The life cycle of a fit, for every loss: count rows, count passes, hand over to the method. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "solve/blas.h"
#include "solve/lad/lad.h"
#include "solve/least_squares/least_squares.h"
#include "solve/method.h"

wf_status wf_fit_new(const wf_fit_options *options, wf_fit **out)
{
    assert(options->p > 0 && options->m > 0 && options->n_rows > 0 && options->tol > 0);
    assert(options->n_here >= 0 && options->n_here <= options->n_rows && options->n_threads > 0);
    assert(options->beta == 0 || (options->n_groups > 0 && options->m > 1));
    wf_status status = WF_NO_MEMORY;
    const size_t m = (size_t)options->m, p = (size_t)options->p, S = (size_t)options->n_groups;
    wf_fit *fit = calloc(1, sizeof *fit);
    if (!fit) {
        return status;
    }
    fit->options = *options;
    fit->options.first_update = NULL;
    fit->needs_pass = 1;
    fit->method = options->loss == WF_ABSOLUTE_ERROR ? &wf_lad_method : &wf_least_squares_method;
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
    wf_blas_begin();
    status = fit->method->new (fit);
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
        fit->method->free(fit);
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
    assert(fit->needs_pass && segment->n_rows >= 0);
    assert(group < 1 || group < fit->options.n_groups);
    start = start < 0 ? fit->rows_seen : start;
    if (segment->n_rows > fit->options.n_here - fit->rows_seen ||
        segment->n_rows > fit->options.n_rows - start) {
        return WF_BAD_SEGMENTS;
    }
    const wf_status status = fit->method->accumulate(fit, segment, group, start, fault);
    fit->rows_seen += segment->n_rows;
    return status;
}

wf_status wf_fit_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    assert(fit->needs_pass);
    if (fit->rows_seen != fit->options.n_rows) {
        return WF_BAD_SEGMENTS;
    }
    fit->rows_seen = 0;
    fit->info.n_passes++;
    return fit->method->advance(fit, interrupt, context);
}

void wf_fit_result(const wf_fit *fit, double *coef, double *intercept, wf_fit_info *info)
{
    assert(!fit->needs_pass);
    const size_t m = (size_t)fit->options.m, p = (size_t)fit->options.p;
    memcpy(coef, fit->coef, m * p * sizeof *coef);
    memcpy(intercept, fit->intercept, m * sizeof *intercept);
    *info = fit->info;
}

ptrdiff_t wf_fit_null(const wf_fit *fit, double *out)
{
    assert(!fit->needs_pass);
    return fit->method->null(fit, out);
}
