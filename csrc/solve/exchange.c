/* A pass over rows that lie with several processes: every one exports what it gathered and absorbs
 * what all of them gathered. Fixed sums add up, kept rows follow each other, in the order of the
 * processes, so that all go on with the same bits. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "solve/method.h"
#include "solve/wire.h"

/* "wacsfwf" and the number of this layout; another number where the byte order is another. */
static const int64_t MARK = 0x7761637366776601;

typedef struct {
    int64_t mark, p, m, n_rows, n_groups, n_passes;
    uint64_t state;
    int64_t rows; /* the only one that may differ */
} header;

/* Of all that two processes must have alike: what is fitted, and where the fit stands. */
static uint64_t state_of(const wf_fit *fit)
{
    const wf_fit_options *o = &fit->options;
    const double settings[] = {(double)o->loss, (double)o->fit_intercept, o->beta, o->alpha,
                               o->tol};
    uint64_t seed = fit->method->state(fit);
    seed = wf_digest(seed, settings, sizeof settings / sizeof *settings);
    return wf_digest(seed, o->first_update, o->n_groups);
}

static header header_of(const wf_fit *fit)
{
    const wf_fit_options *o = &fit->options;
    return (header){.mark = MARK,
                    .p = o->p,
                    .m = o->m,
                    .n_rows = o->n_rows,
                    .n_groups = o->n_groups,
                    .n_passes = fit->info.n_passes,
                    .state = state_of(fit),
                    .rows = fit->rows_seen};
}

wf_status wf_fit_export(const wf_fit *fit, char **data, size_t *size)
{
    assert(fit->needs_pass);
    if (fit->rows_seen != fit->options.n_here) {
        return WF_BAD_SEGMENTS;
    }
    wf_writer to = {0};
    const header head = header_of(fit);
    wf_put(&to, &head, sizeof head);
    wf_status status = fit->method->export(fit, &to);
    status = status == WF_OK && to.failed ? WF_NO_MEMORY : status;
    if (status != WF_OK) {
        free(to.data);
        return status;
    }
    *data = to.data;
    *size = to.size;
    return WF_OK;
}

/* Headers off the messages; WF_OK where they belong to this pass and bring all its rows. */
static wf_status read_headers(const wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    const header own = header_of(fit);
    ptrdiff_t left = fit->options.n_rows;
    for (ptrdiff_t i = 0; i < n_messages; i++) {
        header other;
        if (!wf_read(&message[i], &other, sizeof other)) {
            return WF_BAD_MESSAGE;
        }
        message[i].rows = (ptrdiff_t)other.rows;
        other.rows = own.rows;
        if (memcmp(&own, &other, sizeof own) != 0 || message[i].rows < 0 ||
            message[i].rows > left) {
            return WF_BAD_MESSAGE;
        }
        left -= message[i].rows;
    }
    return left ? WF_BAD_MESSAGE : WF_OK;
}

wf_status wf_fit_absorb(wf_fit *fit, ptrdiff_t n_messages, const char *const *data,
                        const size_t *size)
{
    assert(fit->needs_pass && n_messages >= 0);
    wf_message *message = malloc((size_t)(n_messages + 1) * sizeof *message);
    if (!message) {
        return WF_NO_MEMORY;
    }
    for (ptrdiff_t i = 0; i < n_messages; i++) {
        message[i] = (wf_message){data[i], size[i], 0};
    }
    wf_status status = read_headers(fit, n_messages, message);
    if (status == WF_OK) {
        status = fit->method->absorb(fit, n_messages, message);
    }
    for (ptrdiff_t i = 0; i < n_messages && status == WF_OK; i++) {
        status = message[i].left ? WF_BAD_MESSAGE : WF_OK;
    }
    if (status == WF_OK) {
        fit->rows_seen = fit->options.n_rows;
    }
    free(message);
    return status;
}
