/* Sums of products of columns, in float64: lanes by BLAS, joined in their order. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "core/table.h"
#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/differences.h"
#include "solve/scan.h"
#include "wfcast.h"

typedef struct {
    ptrdiff_t p, m;
    int less;     /* the last column is taken off all others */
    double *lane; /* WF_SCAN_LANES x p x m */
} gram_job;

/* The block's columns side by side, as BLAS takes them. */
static void gather(const gram_job *job, const wf_rows_block *rows, ptrdiff_t n_columns,
                   double *room)
{
    for (ptrdiff_t c = 0; c < n_columns; c++) {
        memcpy(room + c * WF_SCAN_ROWS, rows->column[c], (size_t)rows->n * sizeof *room);
        if (job->less) {
            wf_k->axpy(rows->n, -1, rows->column[n_columns], room + c * WF_SCAN_ROWS);
        }
    }
}

static wf_status visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    const gram_job *job = context;
    const int p = (int)job->p, m = (int)job->m, n = (int)rows->n, ld = WF_SCAN_ROWS;
    const double one = 1;
    gather(job, rows, p + m, room);
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
    gather(job, rows, p, room);
    double *sums = job->lane + lane * job->p * job->p;
    WF_BLAS(dsyrk_)("U", "T", &p, &n, &one, room, &ld, &one, sums, &p, 1, 1);
    return WF_OK;
}

/* WF_OK with *done = 1 where float32 differences served. */
static wf_status try_single(const wf_table *table, int n_threads, double *out, int *done)
{
    int doubtful = 1, wide = 0;
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        wide |= table->columns[c].dtype == WF_F64;
    }
    *done = 0;
    if (wide || table->n_rows < WF_SCAN_LANE_ROWS) { /* few rows do not even out their rounding */
        return WF_OK;
    }
    wf_table flat = *table;
    flat.columns = malloc((size_t)table->n_columns * sizeof *flat.columns);
    if (!flat.columns) {
        return WF_NO_MEMORY;
    }
    memcpy(flat.columns, table->columns, (size_t)table->n_columns * sizeof *flat.columns);
    wf_table_coalesce(&flat);
    const wf_status status = wf_gram_differences(&flat, n_threads, out, &doubtful);
    free(flat.columns);
    *done = status == WF_OK && !doubtful;
    return status;
}

wf_status wf_gram(const wf_table *table, ptrdiff_t p, int less, int n_threads, double *out,
                  wf_fault *fault)
{
    const ptrdiff_t others = table->n_columns - p - (less != 0);
    assert(p > 0 && others >= 0);
    const int symmetric = others == 0;
    int done = 0;
    if (less && symmetric) {
        const wf_status tried = try_single(table, n_threads, out, &done);
        if (done || tried != WF_OK) {
            return tried;
        }
    }
    gram_job job = {.p = p, .m = symmetric ? p : others, .less = less};
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
