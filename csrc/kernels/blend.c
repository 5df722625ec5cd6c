/* Averages of a run, brought up to date: chunks of rows of many tensors, over threads. */
#include <assert.h>
#include <stdatomic.h>
#include <string.h>

#include "core/parallel.h"
#include "core/table.h"
#include "kernels/kernels.h"
#include "kernels/pack.h"
#include "wfcast.h"

enum {
    ROWS_PER_THREAD = 1 << 15, /* fewer are swept before a thread has started */
    CHUNK = 1024               /* rows: all averages of them fit a first-level cache or two */
};

typedef struct {
    const wf_table *tensors; /* coalesced */
    ptrdiff_t n_tensors, k, n_rows;
    const double *c;
    int n_tasks;
    _Atomic ptrdiff_t nonfinite; /* n_tensors for none */
} blend_job;

/* Of the values that a chunk computes in, `wide`: float64. */
typedef struct {
    const wf_table *table;
    ptrdiff_t start, n;
    int wide;
} chunk;

/* Where a column's rows lie as they are to be computed with, or else are packed to `room`. */
static void *values(const chunk *here, ptrdiff_t c, double *room)
{
    const wf_column *column = &here->table->columns[c];
    const wf_dtype dtype = here->wide ? WF_F64 : WF_F32;
    const ptrdiff_t size = wf_item_size(dtype);
    if (column->dtype == dtype && here->table->ndim == 1 && column->strides[0] == size &&
        (uintptr_t)column->data % (uintptr_t)size == 0) {
        return column->data + here->start * size;
    }
    return room;
}

static void read(const chunk *here, ptrdiff_t c, double *room)
{
    if (here->wide) {
        wf_pack_f64(here->table, c, here->start, here->n, room);
    } else {
        wf_pack_f32(here->table, c, here->start, here->n, (float *)(void *)room);
    }
}

static void write(const chunk *here, ptrdiff_t c, const void *from)
{
    if (here->wide) {
        wf_unpack_f64(here->table, c, here->start, here->n, from);
    } else {
        wf_unpack_f32(here->table, c, here->start, here->n, from);
    }
}

static int update(const chunk *here, const void *w, ptrdiff_t k, const double *c, void *const *a)
{
    if (here->wide) {
        return wf_k->blend_f64(here->n, w, k, c, (double *const *)a);
    }
    float single[WF_MOST_AVERAGES];
    for (ptrdiff_t j = 0; j < k; j++) {
        single[j] = (float)c[j];
    }
    return wf_k->blend_f32(here->n, w, k, single, (float *const *)a);
}

/* Nonzero where w is not finite. */
static int blend_chunk(const chunk *here, ptrdiff_t k, const double *c)
{
    double w_room[CHUNK], room[CHUNK], weight[WF_MOST_AVERAGES];
    void *w = values(here, 0, w_room), *in_place[WF_MOST_AVERAGES];
    ptrdiff_t together = 0;
    if (w == w_room) {
        read(here, 0, w_room);
    }
    for (ptrdiff_t j = 0; j < k; j++) {
        void *average = values(here, 1 + j, room);
        if (c[j] == 0) {
            continue;
        }
        if (c[j] == 1) {
            write(here, 1 + j, w);
        } else if (average == room) {
            read(here, 1 + j, room);
            update(here, w, 1, &c[j], &average);
            write(here, 1 + j, room);
        } else {
            weight[together] = c[j];
            in_place[together++] = average;
        }
    }
    return update(here, w, together, weight, in_place);
}

/* The first tensor with a value that is not finite, whoever meets it first. */
static void report(blend_job *job, ptrdiff_t tensor)
{
    ptrdiff_t known = atomic_load(&job->nonfinite);
    while (tensor < known && !atomic_compare_exchange_weak(&job->nonfinite, &known, tensor)) {
    }
}

static void blend_task(void *context, int t)
{
    blend_job *job = context;
    const ptrdiff_t share = job->n_rows / job->n_tasks / CHUNK * CHUNK;
    const ptrdiff_t first = t * share, last = t + 1 < job->n_tasks ? first + share : job->n_rows;
    ptrdiff_t before = 0; /* rows of the tensors so far */
    for (ptrdiff_t i = 0; i < job->n_tensors && before < last; i++) {
        const wf_table *table = &job->tensors[i];
        int wide = 0, bad = 0;
        for (ptrdiff_t c = 0; c < table->n_columns; c++) {
            wide |= table->columns[c].dtype == WF_F64;
        }
        ptrdiff_t at = first > before ? first - before : 0;
        const ptrdiff_t stop = last - before < table->n_rows ? last - before : table->n_rows;
        for (; at < stop; at += CHUNK) {
            const chunk here = {table, at, stop - at < CHUNK ? stop - at : CHUNK, wide};
            bad |= blend_chunk(&here, job->k, job->c);
        }
        if (bad) {
            report(job, i);
        }
        before += table->n_rows;
    }
}

void wf_blend(wf_table *tensors, ptrdiff_t n_tensors, ptrdiff_t k, const double *c, int n_threads,
              ptrdiff_t *nonfinite)
{
    assert(n_threads > 0 && k <= WF_MOST_AVERAGES);
    blend_job job = {.tensors = tensors, .n_tensors = n_tensors, .k = k, .c = c};
    for (ptrdiff_t i = 0; i < n_tensors; i++) {
        assert(tensors[i].n_columns == 1 + k);
        wf_table_coalesce(&tensors[i]);
        job.n_rows += tensors[i].n_rows;
    }
    const ptrdiff_t most = job.n_rows / ROWS_PER_THREAD;
    job.n_tasks = most < 1 ? 1 : most < n_threads ? (int)most : n_threads;
    atomic_init(&job.nonfinite, n_tensors);
    wf_parallel(job.n_tasks, job.n_tasks, blend_task, &job);
    const ptrdiff_t found = atomic_load(&job.nonfinite);
    *nonfinite = found < n_tensors ? found : -1;
}
