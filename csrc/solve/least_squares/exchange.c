/* The sums, or the few rows, of a squared_error pass, of several processes. */
#include "solve/least_squares/exchange.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/least_squares/state.h"
#include "solve/wire.h"

uint64_t wf_least_squares_state(const wf_fit *fit)
{
    const wf_least_squares *s = fit->solver;
    return wf_digest((uint64_t)s->refining, fit->coef,
                     s->refining ? fit->options.p * fit->options.m : 0);
}

static size_t bytes_of_rows(const wf_fit *fit, ptrdiff_t rows)
{
    return (size_t)(rows * (fit->options.p + fit->options.m)) * sizeof(double);
}

wf_status wf_least_squares_export(const wf_fit *fit, wf_writer *to)
{
    const wf_least_squares *s = fit->solver;
    if (s->rows) {
        wf_put(to, s->rows, bytes_of_rows(fit, fit->options.n_here));
        return WF_OK;
    }
    double *total = calloc((size_t)s->width, sizeof *total);
    if (!total) {
        return WF_NO_MEMORY;
    }
    for (ptrdiff_t l = 0; l < s->lanes; l++) {
        wf_k->axpy(s->width, 1.0, s->lane + l * s->width, total);
    }
    wf_put(to, s->shift, (size_t)(fit->options.p + fit->options.m) * sizeof *s->shift);
    wf_put(to, total, (size_t)s->width * sizeof *total);
    free(total);
    return WF_OK;
}

/* Sums over n rows of columns as if d had been added to the columns first. */
static void move(double *stat, ptrdiff_t p, ptrdiff_t m, double n, const double *d)
{
    double *cross = stat + p * p, *sums = cross + p * m, *squares = sums + p + m;
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = 0; l <= k; l++) { /* the half that is summed up */
            stat[k * p + l] += d[k] * sums[l] + d[l] * sums[k] + n * d[k] * d[l];
        }
        for (ptrdiff_t j = 0; j < m; j++) {
            cross[j * p + k] += d[k] * sums[p + j] + d[p + j] * sums[k] + n * d[k] * d[p + j];
        }
    }
    for (ptrdiff_t j = 0; j < m; j++) {
        squares[j] += 2 * d[p + j] * sums[p + j] + n * d[p + j] * d[p + j];
    }
    wf_k->axpy(p + m, n, d, sums);
}

/* The rows of all, in their order, in the place of the own ones. */
static wf_status absorb_rows(wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    const ptrdiff_t n = fit->options.n_rows, columns = fit->options.p + fit->options.m;
    double *rows = malloc(bytes_of_rows(fit, n));
    if (!rows) {
        return WF_NO_MEMORY;
    }
    wf_least_squares *s = fit->solver;
    free(s->rows);
    s->rows = rows;
    for (ptrdiff_t i = 0; i < n_messages; i++) {
        const size_t column = (size_t)message[i].rows * sizeof *rows;
        const char *from = wf_take(&message[i], bytes_of_rows(fit, message[i].rows));
        if (!from) {
            return WF_BAD_MESSAGE;
        }
        for (ptrdiff_t c = 0; c < columns; c++) {
            memcpy(rows + c * n, from + (size_t)c * column, column);
        }
        rows += message[i].rows;
    }
    return WF_OK;
}

wf_status wf_least_squares_absorb(wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    if (s->rows) {
        return absorb_rows(fit, n_messages, message);
    }
    double *total = malloc((size_t)(s->width + p + m) * sizeof *total);
    if (!total) {
        return WF_NO_MEMORY;
    }
    double *shift = total + s->width;
    wf_status status = WF_OK;
    assert(n_messages >= 0 && s->lanes > 0);
    memset(s->lane, 0, (size_t)(s->lanes * s->width) * sizeof *s->lane);
    int first = !s->refining; /* all take the shift of the first process that has rows */
    for (ptrdiff_t i = 0; i < n_messages && status == WF_OK; i++) {
        if (!wf_read(&message[i], shift, (size_t)(p + m) * sizeof *shift) ||
            !wf_read(&message[i], total, (size_t)s->width * sizeof *total)) {
            status = WF_BAD_MESSAGE;
        } else if (message[i].rows) {
            if (first) {
                memcpy(s->shift, shift, (size_t)(p + m) * sizeof *shift);
                first = 0;
            }
            wf_k->axpy(p + m, -1, s->shift, shift);
            if (!s->refining) {
                move(total, p, m, (double)message[i].rows, shift);
            }
            wf_k->axpy(s->width, 1.0, total, s->lane);
        }
    }
    s->have_shift = 1;
    free(total);
    return status;
}
