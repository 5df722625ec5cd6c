/* Blocks, lanes and threads of a read; see scan.h. */
#include "solve/scan.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "core/table.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"

typedef struct {
    const wf_table *table; /* coalesced */
    ptrdiff_t n_columns, group, n_groups;
    int n_lanes, n_threads;
    wf_visitor *visit;
    void *context;
    double *scratch; /* n_threads x scratch_size: see one_block */
    ptrdiff_t scratch_size, room_size;
    atomic_int status;
} scan_job;

static wf_status one_block(scan_job *job, int lane, ptrdiff_t start, ptrdiff_t n, double *scratch)
{
    double *room = scratch + (job->n_columns + 1) * WF_SCAN_ROWS; /* after columns and groups */
    const double **columns = (const double **)(void *)(room + job->room_size);
    int bad = 0;
    for (ptrdiff_t c = 0; c < job->n_columns; c++) {
        double *packed = scratch + c * WF_SCAN_ROWS;
        const wf_column *column = &job->table->columns[c];
        if (column->dtype == WF_F64 && job->table->ndim == 1 &&
            column->strides[0] == (ptrdiff_t)sizeof(double) &&
            (uintptr_t)column->data % sizeof(double) == 0) { /* as good as packed */
            columns[c] =
                (const double *)(const void *)(column->data + start * (ptrdiff_t)sizeof(double));
        } else {
            wf_pack_f64(job->table, c, start, n, packed);
            columns[c] = packed;
        }
        bad |= job->group != WF_SCAN_UNCHECKED && wf_k->nonfinite(n, columns[c]);
    }
    if (bad) {
        return WF_NONFINITE_IN;
    }
    int64_t *group = NULL;
    if (job->n_groups > 0) {
        group = (int64_t *)(void *)(scratch + job->n_columns * WF_SCAN_ROWS);
        if (job->group < 0) {
            wf_pack_i64(job->table, job->n_columns, start, n, group);
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            group[i] = job->group < 0 ? group[i] : job->group;
            bad |= group[i] < 0 || group[i] >= job->n_groups;
        }
        if (bad) {
            return WF_BAD_GROUP;
        }
    }
    const wf_rows_block rows = {start, n, columns, group};
    return job->visit(job->context, lane, &rows, room);
}

static void lane_task(void *context, int lane)
{
    scan_job *job = context;
    double *scratch = job->scratch + lane % job->n_threads * job->scratch_size;
    const ptrdiff_t n = job->table->n_rows;
    const ptrdiff_t share = n / job->n_lanes, more = n % job->n_lanes;
    const ptrdiff_t first = lane * share + (lane < more ? lane : more);
    const ptrdiff_t last = first + share + (lane < more);
    for (ptrdiff_t start = first; start < last; start += WF_SCAN_ROWS) {
        const ptrdiff_t count = last - start < WF_SCAN_ROWS ? last - start : WF_SCAN_ROWS;
        const wf_status status = one_block(job, lane, start, count, scratch);
        if (status != WF_OK) {
            atomic_store(&job->status, (int)status);
        }
        if (atomic_load_explicit(&job->status, memory_order_relaxed) != WF_OK) {
            return;
        }
    }
}

/* The first row in C order whose trajectory number is out of range. */
static void find_bad_group(const wf_table *table, ptrdiff_t column, ptrdiff_t n_groups,
                           wf_fault *fault)
{
    for (ptrdiff_t row = 0; row < table->n_rows; row++) {
        int64_t group;
        wf_pack_i64(table, column, row, 1, &group);
        if (group < 0 || group >= n_groups) {
            *fault = (wf_fault){column, row};
            return;
        }
    }
}

wf_status wf_scan(const wf_table *segment, ptrdiff_t n_columns, ptrdiff_t group, ptrdiff_t n_groups,
                  int n_threads, wf_visitor *visit, void *context, ptrdiff_t room_size,
                  wf_fault *fault)
{
    assert(segment->n_columns >= n_columns + (n_groups > 0 && group == -1));
    assert(n_threads > 0 && room_size >= 0);
    if (segment->n_rows == 0) {
        return WF_OK;
    }
    wf_table flat = *segment;
    flat.columns = malloc((size_t)segment->n_columns * sizeof *flat.columns);
    if (!flat.columns) {
        return WF_NO_MEMORY;
    }
    memcpy(flat.columns, segment->columns, (size_t)segment->n_columns * sizeof *flat.columns);
    wf_table_coalesce(&flat);
    ptrdiff_t lanes = flat.n_rows / WF_SCAN_LANE_ROWS;
    lanes = lanes < 1 ? 1 : lanes > WF_SCAN_LANES ? WF_SCAN_LANES : lanes;
    scan_job job = {.table = &flat, .n_columns = n_columns, .group = group, .n_groups = n_groups};
    job.n_lanes = (int)lanes;
    job.n_threads = n_threads < job.n_lanes ? n_threads : job.n_lanes;
    job.visit = visit;
    job.context = context;
    job.room_size = room_size;
    job.scratch_size =
        (n_columns + 1) * WF_SCAN_ROWS + room_size + n_columns + 8; /* a line apart */
    job.scratch = malloc((size_t)(job.n_threads * job.scratch_size) * sizeof *job.scratch);
    wf_status status = WF_NO_MEMORY;
    if (job.scratch) {
        atomic_init(&job.status, WF_OK);
        wf_parallel(job.n_lanes, job.n_threads, lane_task, &job);
        status = (wf_status)atomic_load(&job.status);
    }
    free(job.scratch);
    free(flat.columns);
    if (status == WF_NONFINITE_IN || status == WF_BAD_GROUP) {
        /* lanes may have met both: the one that is looked for first is told, whoever was faster */
        if (wf_table_find_nonfinite(segment, 0, n_columns, fault) == 0) {
            return WF_NONFINITE_IN;
        }
        if (group < 0) {
            find_bad_group(segment, n_columns, n_groups, fault);
        }
    }
    return status;
}
