/* Sums of products of differences from one column, for states that lie close together: differences
 * and products in float32, in short runs that are added up in float64. Lanes of rows, cut by size
 * alone, are joined in their order. */
#include "solve/differences.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "core/table.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"
#include "solve/scan.h"

enum { ROWS = WF_GRAM_RUN };

typedef struct {
    const wf_table *table; /* coalesced; its last column is the one that is taken off */
    ptrdiff_t p, padded;   /* columns, and filled up to whole tiles */
    int n_lanes, n_threads;
    float *blocks; /* n_threads x block_size: padded columns, and the last */
    double *sums;  /* n_lanes x padded x padded x WF_GRAM_LANES */
    ptrdiff_t block_size;
} differences;

/* n <= ROWS values of a column where they lie, or packed to `room`. */
static const float *values(const wf_table *table, ptrdiff_t c, ptrdiff_t start, ptrdiff_t n,
                           float *room)
{
    const wf_column *column = &table->columns[c];
    if (column->dtype == WF_F32 && table->ndim == 1 &&
        column->strides[0] == (ptrdiff_t)sizeof(float) &&
        (uintptr_t)column->data % sizeof(float) == 0) {
        return (const float *)(const void *)column->data + start;
    }
    wf_pack_f32(table, c, start, n, room);
    return room;
}

static void lane_task(void *context, int lane)
{
    const differences *job = context;
    float *block = job->blocks + lane % job->n_threads * job->block_size;
    double *sums = job->sums + lane * job->padded * job->padded * WF_GRAM_LANES;
    const ptrdiff_t n = job->table->n_rows;
    const ptrdiff_t share = n / job->n_lanes, more = n % job->n_lanes;
    const ptrdiff_t first = lane * share + (lane < more ? lane : more);
    const ptrdiff_t last = first + share + (lane < more);
    for (ptrdiff_t start = first; start < last; start += ROWS) {
        const ptrdiff_t count = last - start < ROWS ? last - start : ROWS;
        const float *base = values(job->table, job->p, start, count, block + job->padded * ROWS);
        for (ptrdiff_t c = 0; c < job->p; c++) {
            float *to = block + c * ROWS;
            wf_k->minus(count, values(job->table, c, start, count, to), base, to);
            memset(to + count, 0, (size_t)(ROWS - count) * sizeof *to);
        }
        const ptrdiff_t whole = (count + WF_GRAM_LANES - 1) / WF_GRAM_LANES * WF_GRAM_LANES;
        wf_k->gram_f32(whole, job->padded, block, sums);
    }
}

/* Column c is the last one all over. */
static int unmoved(const wf_table *table, ptrdiff_t c)
{
    float room[2][ROWS];
    for (ptrdiff_t start = 0; start < table->n_rows; start += ROWS) {
        const ptrdiff_t left = table->n_rows - start, n = left < ROWS ? left : ROWS;
        const float *x = values(table, c, start, n, room[0]);
        const float *base = values(table, table->n_columns - 1, start, n, room[1]);
        if (memcmp(x, base, (size_t)n * sizeof *x) != 0) {
            return 0;
        }
    }
    return 1;
}

/* Nonzero where a sum is not finite, or squares so small that float32 may have lost them. */
static int join(const differences *job, double *out)
{
    const double least = 1e-28;
    const ptrdiff_t size = job->padded * job->padded * WF_GRAM_LANES;
    for (ptrdiff_t a = 0; a < job->p; a++) {
        for (ptrdiff_t b = 0; b <= a; b++) {
            double total = 0;
            for (int lane = 0; lane < job->n_lanes; lane++) {
                total += wf_k->sum(WF_GRAM_LANES,
                                   job->sums + lane * size + (a * job->padded + b) * WF_GRAM_LANES);
            }
            out[a * job->p + b] = out[b * job->p + a] = total;
            if (!isfinite(total) || (a == b && total < least && !unmoved(job->table, a))) {
                return 1;
            }
        }
    }
    return 0;
}

wf_status wf_gram_differences(const wf_table *flat, int n_threads, double *out, int *doubtful)
{
    assert(flat->n_columns > 1 && n_threads > 0);
    differences job = {.table = flat, .p = flat->n_columns - 1};
    job.padded = (job.p + WF_GRAM_TILE - 1) / WF_GRAM_TILE * WF_GRAM_TILE;
    const ptrdiff_t lanes = flat->n_rows / WF_SCAN_LANE_ROWS;
    job.n_lanes = (int)(lanes < 1 ? 1 : lanes > WF_SCAN_LANES ? WF_SCAN_LANES : lanes);
    job.n_threads = n_threads < job.n_lanes ? n_threads : job.n_lanes;
    job.block_size = (job.padded + 1) * ROWS;
    const ptrdiff_t n_sums = job.n_lanes * job.padded * job.padded * WF_GRAM_LANES;
    job.blocks = calloc((size_t)(job.n_threads * job.block_size), sizeof *job.blocks);
    job.sums = calloc((size_t)n_sums, sizeof *job.sums);
    wf_status status = WF_NO_MEMORY;
    if (job.blocks && job.sums) {
        wf_parallel(job.n_lanes, job.n_threads, lane_task, &job);
        *doubtful = join(&job, out);
        status = WF_OK;
    }
    free(job.blocks);
    free(job.sums);
    return status;
}
