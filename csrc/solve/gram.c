/* Sums of products of columns, in float64: lanes by BLAS, joined in their order. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/scan.h"
#include "wfcast.h"

typedef struct {
    ptrdiff_t p, m;
    double *lane; /* WF_SCAN_LANES x p x m */
} gram_job;

static wf_status visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    const gram_job *job = context;
    const int p = (int)job->p, m = (int)job->m, n = (int)rows->n, ld = WF_SCAN_ROWS;
    const double one = 1;
    for (ptrdiff_t c = 0; c < p + m; c++) {
        memcpy(room + c * ld, rows->column[c], (size_t)n * sizeof *room);
    }
    double *sums = job->lane + lane * job->p * job->m;
    WF_BLAS(dgemm_)
    ("T", "N", &m, &p, &n, &one, room + job->p * ld, &ld, room, &ld, &one, sums, &m, 1, 1);
    return WF_OK;
}

static wf_status visit_symmetric(void *context, int lane, const wf_rows_block *rows, double *room)
{
    const gram_job *job = context;
    const int p = (int)job->p, n = (int)rows->n, ld = WF_SCAN_ROWS;
    const double one = 1;
    for (ptrdiff_t c = 0; c < p; c++) {
        memcpy(room + c * ld, rows->column[c], (size_t)n * sizeof *room);
    }
    double *sums = job->lane + lane * job->p * job->p;
    WF_BLAS(dsyrk_)("U", "T", &p, &n, &one, room, &ld, &one, sums, &p, 1, 1);
    return WF_OK;
}

wf_status wf_gram(const wf_table *table, ptrdiff_t p, int n_threads, double *out, wf_fault *fault)
{
    assert(p > 0 && p <= table->n_columns);
    const int symmetric = p == table->n_columns;
    gram_job job = {.p = p, .m = symmetric ? p : table->n_columns - p};
    const ptrdiff_t size = job.p * job.m;
    job.lane = calloc((size_t)(WF_SCAN_LANES * size), sizeof *job.lane);
    if (!job.lane) {
        return WF_NO_MEMORY;
    }
    const wf_status status =
        wf_scan(table, table->n_columns, -1, 0, n_threads, symmetric ? visit_symmetric : visit,
                &job, table->n_columns * WF_SCAN_ROWS, fault);
    memcpy(out, job.lane, (size_t)size * sizeof *out);
    for (ptrdiff_t i = size; i < WF_SCAN_LANES * size; i++) {
        out[i % size] += job.lane[i];
    }
    for (ptrdiff_t a = 0; symmetric && a < p; a++) { /* column-major upper to both halves */
        for (ptrdiff_t b = 0; b < a; b++) {
            out[b * p + a] = out[a * p + b];
        }
    }
    free(job.lane);
    return status;
}
