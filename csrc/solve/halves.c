/* What each move of a run shares with the moves of its halves, in one read of all states. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/scan.h"
#include "wfcast.h"

typedef struct {
    ptrdiff_t n, middle;
    double *lane; /* WF_SCAN_LANES x n x WF_HALVES */
} halves_job;

/* d = x - y; returns how many are not 0. */
static ptrdiff_t subtract(ptrdiff_t n, const double *x, const double *y, double *d)
{
    ptrdiff_t moved = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        d[i] = x[i] - y[i];
        moved += d[i] != 0;
    }
    return moved;
}

static wf_status visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    const halves_job *job = context;
    const double *const *w = rows->column;
    const ptrdiff_t n = rows->n, last = job->n - 1;
    double *a = room, *b = room + WF_SCAN_ROWS, *e = room + 2 * WF_SCAN_ROWS;
    (void)subtract(n, w[job->middle], w[0], a);
    (void)subtract(n, w[last], w[job->middle], b);
    double *sums = job->lane + lane * job->n * WF_HALVES;
    for (ptrdiff_t k = 0; k <= last; k++, sums += WF_HALVES) {
        const ptrdiff_t moved =
            k == 0 ? subtract(n, w[last], w[0], e) : subtract(n, w[k], w[k - 1], e);
        sums[0] += wf_k->dot(n, w[k], w[k]);
        sums[1] += wf_k->dot(n, e, e);
        sums[2] += wf_k->dot(n, e, a);
        sums[3] += wf_k->dot(n, e, b);
        sums[4] += (double)moved;
    }
    return WF_OK;
}

wf_status wf_halves(const wf_table *table, ptrdiff_t middle, int n_threads, double *out,
                    wf_fault *fault)
{
    assert(0 <= middle && middle < table->n_columns);
    halves_job job = {.n = table->n_columns, .middle = middle};
    const ptrdiff_t size = job.n * WF_HALVES;
    job.lane = calloc((size_t)(WF_SCAN_LANES * size), sizeof *job.lane);
    if (!job.lane) {
        return WF_NO_MEMORY;
    }
    const wf_status status =
        wf_scan(table, job.n, -1, 0, n_threads, visit, &job, 3 * WF_SCAN_ROWS, fault);
    memcpy(out, job.lane, (size_t)size * sizeof *out);
    for (ptrdiff_t i = size; i < WF_SCAN_LANES * size; i++) {
        out[i % size] += job.lane[i];
    }
    free(job.lane);
    return status;
}
