/* predict: blocks of rows through the apply kernels, over threads, with finite checks around them.
 */
#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/parallel.h"
#include "core/table.h"
#include "kernels/kernels.h"
#include "kernels/moves.h"
#include "kernels/pack.h"
#include "wfcast.h"

enum {
    ROWS_PER_THREAD = 1 << 15, /* fewer are swept before a thread has started */
    BLOCK_BYTES = 1 << 17,     /* of packed columns: a share of the second-level cache */
    MOST_BLOCK = 4096,         /* rows; longer blocks save nothing more */
    LEAST_BLOCK = 64,          /* rows, however many columns: a few vectors at least */
    LINE = 64                  /* bytes of a cache line */
};

typedef struct {
    const wf_table *table; /* coalesced */
    ptrdiff_t p, m;
    const void *coef, *intercept; /* in the compute type */
    int centred;    /* the last input stands for the others but for their difference */
    ptrdiff_t last; /* where the input is that moves are measured from */
    int wide;       /* compute in float64 */
    int fused;      /* one dtype, contiguous: the kernel reads and writes the columns themselves */
    int stream, check;
    int through;     /* fused, but the output, an input too, waits in scratch for its moves */
    int dry;         /* compute and check, write nothing */
    ptrdiff_t block; /* rows at a time */
    ptrdiff_t phase; /* the first block ends here, so that outputs start on a line */
    ptrdiff_t n_blocks;
    int n_tasks;
    wf_apply_kernel *kernel;
    wf_moves_kernel *moving; /* in its place where moves are asked for */
    wf_moves *moves;         /* n_blocks, or NULL: added up in their order, whoever swept them */
    char *scratch;           /* n_tasks x scratch_size: pointers, then packed columns */
    size_t scratch_size;
    wf_finite *finite; /* n_tasks */
    wf_fault *fault; /* n_tasks: the first output of a dry run that does not fit; rows coalesced */
} apply_job;

/* First output of the block in scratch that is not finite once rounded to its column's dtype. */
static void note_overflow(const apply_job *job, ptrdiff_t start, ptrdiff_t n, void *const *y,
                          wf_fault *fault)
{
    for (ptrdiff_t j = 0; j < job->m && (fault->column < 0 || j + job->p <= fault->column); j++) {
        const wf_dtype dtype = job->table->columns[job->p + j].dtype;
        for (ptrdiff_t i = 0; i < n; i++) {
            const int fits = job->wide ? wf_fits_f64(((const double *)y[j])[i], dtype)
                                       : wf_fits_f32(((const float *)y[j])[i], dtype);
            if (!fits && (fault->column != job->p + j || start + i < fault->row)) {
                *fault = (wf_fault){job->p + j, start + i};
                break;
            }
        }
    }
}

static void packed_block(const apply_job *job, int t, ptrdiff_t b, ptrdiff_t start, ptrdiff_t n)
{
    const ptrdiff_t p = job->p, m = job->m;
    const size_t size = job->wide ? sizeof(double) : sizeof(float);
    void **pointers = (void **)(void *)(job->scratch + (size_t)t * job->scratch_size);
    char *room = (char *)(pointers + p + m);
    wf_finite *finite = &job->finite[t];
    for (ptrdiff_t c = 0; c < p + m; c++) {
        pointers[c] = room + (size_t)c * (size_t)job->block * size;
        if (c < p && job->wide) {
            wf_pack_f64(job->table, c, start, n, pointers[c]);
        } else if (c < p) {
            wf_pack_f32(job->table, c, start, n, pointers[c]);
        }
    }
    void *const *y = pointers + p;
    job->kernel(n, p, (const void *const *)pointers, m, job->coef, job->intercept, job->centred, y,
                0, finite);
    if (job->dry) {
        note_overflow(job, start, n, y, &job->fault[t]);
        return;
    }
    for (ptrdiff_t j = 0; j < m; j++) {
        finite->bad |= job->wide ? wf_unpack_f64(job->table, p + j, start, n, y[j])
                                 : wf_unpack_f32(job->table, p + j, start, n, y[j]);
    }
    if (job->moves && job->wide) {
        wf_pack_f64(job->table, p, start, n, *y); /* as rounded */
        job->moves[b] = wf_moves_between(WF_F64, n, *y, pointers[job->last]);
    } else if (job->moves) {
        wf_pack_f32(job->table, p, start, n, *y);
        job->moves[b] = wf_moves_between(WF_F32, n, *y, pointers[job->last]);
    }
}

/* One output and its moves. The kernel looks at no single element and squares in the compute type:
 * where a sum is not finite, or so small that squares may have been lost, they are summed again. */
static wf_moves moving(const apply_job *job, int t, ptrdiff_t n, const void *const *x, void *y)
{
    const double least = 1e-28; /* 1e6 times what n <= MOST_BLOCK squares of float32 can lose */
    double sums[2];
    job->moving(n, job->p, x, job->coef, job->intercept, job->centred, job->last, y, job->stream,
                &job->finite[t], sums);
    const wf_dtype dtype = job->table->columns[0].dtype;
    const void *last = x[job->last];
    const size_t size = (size_t)(n * wf_item_size(dtype));
    if (isfinite(sums[0]) && isfinite(sums[1]) && sums[1] > least &&
        (sums[0] > least || memcmp(y, last, size) == 0)) { /* frozen weights are common */
        return (wf_moves){sums[0], sums[1]};
    }
    return wf_moves_between(dtype, n, y, last);
}

static void fused_block(const apply_job *job, int t, ptrdiff_t b, ptrdiff_t start, ptrdiff_t n)
{
    const ptrdiff_t p = job->p;
    const wf_dtype dtype = job->table->columns[0].dtype;
    void **pointers = (void **)(void *)(job->scratch + (size_t)t * job->scratch_size);
    for (ptrdiff_t c = 0; c < p + job->m; c++) {
        const wf_column *column = &job->table->columns[c];
        pointers[c] = column->data + start * wf_item_size(column->dtype);
    }
    if (!job->moves) {
        job->kernel(n, p, (const void *const *)pointers, job->m, job->coef, job->intercept,
                    job->centred, pointers + p, job->stream, &job->finite[t]);
        return;
    }
    void *const y = job->through ? (void *)(pointers + p + 1) : pointers[p];
    job->moves[b] = moving(job, t, n, (const void *const *)pointers, y);
    const ptrdiff_t size = n * wf_item_size(dtype);
    if (job->through) {
        memcpy(pointers[p], y, (size_t)size);
    }
}

static void apply_task(void *context, int t)
{
    const apply_job *job = context;
    const ptrdiff_t n_rows = job->table->n_rows;
    const ptrdiff_t share = job->n_blocks / job->n_tasks, more = job->n_blocks % job->n_tasks;
    const ptrdiff_t first = t * share + (t < more ? t : more);
    const ptrdiff_t last = first + share + (t < more);
    for (ptrdiff_t b = first; b < last; b++) {
        const ptrdiff_t start = b == 0 ? 0 : job->phase + (b - 1) * job->block;
        ptrdiff_t stop = job->phase + b * job->block;
        stop = stop < n_rows ? stop : n_rows;
        if (job->fused) {
            fused_block(job, t, b, start, stop - start);
        } else {
            packed_block(job, t, b, start, stop - start);
        }
    }
#if defined(__x86_64__)
    if (job->stream) {
        _mm_sfence();
    }
#endif
}

static size_t last_level_cache(void)
{
    long size = -1;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    size = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return size > 0 && size < 32 << 20 ? (size_t)size : (size_t)32 << 20;
}

static void choose_kernels(apply_job *job, wf_dtype dtype)
{
    switch (dtype) {
    case WF_F64:
        job->kernel = wf_k->apply_f64;
        job->moving = wf_k->moves_f64;
        break;
    case WF_F16:
        job->kernel = wf_k->apply_f16;
        job->moving = wf_k->moves_f16;
        break;
    case WF_BF16:
        job->kernel = wf_k->apply_bf16;
        job->moving = wf_k->moves_bf16;
        break;
    default:
        job->kernel = wf_k->apply_f32;
        job->moving = wf_k->moves_f32;
        break;
    }
}

/* Which path, which kernel, which blocks. `shared`: an output is an input. `moves`: they are asked
 * for. */
static void plan(apply_job *job, int shared, int moves)
{
    const wf_table *table = job->table;
    const ptrdiff_t n_columns = table->n_columns;
    int uniform = wf_table_contiguous(table);
    size_t out_bytes = 0;
    for (ptrdiff_t c = 0; c < n_columns; c++) {
        uniform = uniform && table->columns[c].dtype == table->columns[0].dtype;
        job->wide |= table->columns[c].dtype == WF_F64;
        out_bytes +=
            c < job->p ? 0 : (size_t)table->n_rows * (size_t)wf_item_size(table->columns[c].dtype);
    }
    const int one_group = job->m == 1 || job->m == 2 || job->m == WF_APPLY_OUTPUTS;
    job->fused = uniform && !job->dry && (!shared || one_group);
    job->stream = job->fused && !shared && out_bytes > last_level_cache();
    const int on_line = (uintptr_t)table->columns[job->p].data % LINE == 0;
    job->stream = job->stream && (on_line || !moves); /* no head of odd rows: see phase */
    job->through = job->fused && moves && shared;
    choose_kernels(job, job->fused ? table->columns[0].dtype : job->wide ? WF_F64 : WF_F32);

    const ptrdiff_t size = job->wide ? 8 : 4;
    ptrdiff_t block =
        BLOCK_BYTES / (size * (job->fused ? job->p : n_columns)) / LEAST_BLOCK * LEAST_BLOCK;
    block = block < LEAST_BLOCK ? LEAST_BLOCK : block > MOST_BLOCK ? MOST_BLOCK : block;
    job->block = block;
    job->phase = block;
    if (job->stream && !moves) { /* the sums must not depend on where an output lies */
        const uintptr_t rest = (uintptr_t)table->columns[job->p].data % LINE;
        job->phase =
            rest ? (ptrdiff_t)(LINE - rest) / wf_item_size(table->columns[0].dtype) : block;
    }
    const ptrdiff_t after = table->n_rows > job->phase ? table->n_rows - job->phase : 0;
    job->n_blocks = 1 + after / block + (after % block != 0);
    const ptrdiff_t packed = job->fused ? job->through : n_columns;
    job->scratch_size = (size_t)n_columns * sizeof(void *) + (size_t)(packed * block * size);
    job->scratch_size = (job->scratch_size + LINE - 1) / LINE * LINE;
}

static wf_status run(apply_job *job, int n_threads, wf_moves *moves)
{
    ptrdiff_t tasks = job->table->n_rows / ROWS_PER_THREAD;
    tasks = tasks < n_threads ? tasks : n_threads;
    tasks = tasks < 1 ? 1 : tasks < job->n_blocks ? tasks : job->n_blocks;
    job->n_tasks = (int)tasks;
    wf_status status = WF_NO_MEMORY;
    job->scratch = malloc((size_t)tasks * job->scratch_size);
    job->finite = calloc((size_t)tasks, sizeof *job->finite);
    job->fault = calloc((size_t)tasks, sizeof *job->fault);
    job->moves = moves ? calloc((size_t)job->n_blocks, sizeof *moves) : NULL;
    if (!job->scratch || !job->finite || !job->fault || (moves && !job->moves)) {
        goto done;
    }
    for (int t = 0; t < job->n_tasks; t++) {
        job->finite[t].check = job->check;
        job->fault[t].column = -1;
    }
    wf_parallel(job->n_tasks, job->n_tasks, apply_task, job);
    status = WF_OK;
    wf_fault first = {-1, 0};
    for (int t = 0; t < job->n_tasks && job->check; t++) {
        if (job->finite[t].bad || job->fault[t].column >= 0) {
            status = WF_NONFINITE_OUT;
        }
        if (job->fault[t].column >= 0 &&
            (first.column < 0 || job->fault[t].column < first.column)) {
            first = job->fault[t];
        }
    }
    job->fault[0] = first;
    for (ptrdiff_t b = 0; moves && b < job->n_blocks; b++) {
        moves->move_sq += job->moves[b].move_sq;
        moves->last_sq += job->moves[b].last_sq;
    }
done:
    free(job->moves);
    free(job->scratch);
    free(job->finite);
    return status;
}

/* The row in C order of `table` whose element of `column` lies at `pointer`. */
static ptrdiff_t row_at(const wf_table *table, ptrdiff_t column, const char *pointer)
{
    wf_runs runs;
    char *at;
    ptrdiff_t stride, count, row = 0;
    wf_runs_begin(&runs, table, column, 0, table->n_rows);
    while ((count = wf_runs_next(&runs, &at, &stride)) > 0) {
        for (ptrdiff_t i = 0; i < count; i++) {
            if (at + i * stride == pointer) {
                return row + i;
            }
        }
        row += count;
    }
    return 0;
}

/* From what a sweep flagged to the first value at fault, inputs before outputs. */
static wf_status locate(wf_status status, const apply_job *job, const wf_table *given, ptrdiff_t p,
                        wf_fault *fault)
{
    if (status != WF_NONFINITE_OUT) {
        return status;
    }
    if (wf_table_find_nonfinite(given, 0, p, fault) == 0) {
        return WF_NONFINITE_IN;
    }
    if (!job->dry) {
        return wf_table_find_nonfinite(given, p, given->n_columns, fault) == 0 ? status : WF_OK;
    }
    const wf_fault found = job->fault[0];
    if (found.column < 0) {
        return WF_OK;
    }
    wf_runs runs;
    char *pointer;
    ptrdiff_t stride;
    wf_runs_begin(&runs, job->table, found.column, found.row, 1);
    wf_runs_next(&runs, &pointer, &stride);
    *fault = (wf_fault){found.column, row_at(given, found.column, pointer)};
    return status;
}

/* Lines and averages have coefficients that sum to 1. Centred on one input, so that only the others'
 * differences from it are multiplied, inputs that are equal give themselves to the bit. It is the
 * input with the largest coefficients, which keeps the rounding errors near those of the plain sum;
 * -1 where the coefficients of an output sum to something else. `most` is room for m numbers. */
static ptrdiff_t centre_of(ptrdiff_t p, ptrdiff_t m, const double *coef, const double *intercept,
                           double *most)
{
    for (ptrdiff_t j = 0; j < m; j++) {
        double sum = 0, sum_abs = 0;
        most[j] = 0;
        for (ptrdiff_t k = 0; k < p; k++) {
            const double size = fabs(coef[j * p + k]);
            sum += coef[j * p + k];
            sum_abs += size;
            most[j] = size > most[j] ? size : most[j];
        }
        if (intercept[j] != 0 || !(fabs(sum - 1) <= (double)p * DBL_EPSILON * sum_abs)) {
            return -1;
        }
    }
    ptrdiff_t centre = -1;
    double best = 0;
    for (ptrdiff_t k = p - 1; k >= 0; k--) {
        double least = 1; /* of |a_jk| over the largest of its output */
        for (ptrdiff_t j = 0; j < m; j++) {
            const double share = fabs(coef[j * p + k]) / most[j];
            least = share < least ? share : least;
        }
        if (least > best) {
            best = least;
            centre = k;
        }
    }
    return centre;
}

wf_status wf_apply(const wf_table *table, ptrdiff_t p, const double *coef, const double *intercept,
                   int check_finite, int n_threads, wf_moves *moves, wf_fault *fault)
{
    assert(p >= 0 && p <= table->n_columns && n_threads > 0);
    assert(!moves || (p > 0 && table->n_columns == p + 1));
    if (moves) {
        *moves = (wf_moves){0, 0};
    }
    if (table->n_rows == 0) {
        return WF_OK;
    }
    const ptrdiff_t m = table->n_columns - p;
    wf_status status = WF_NO_MEMORY;
    wf_table flat = *table;
    float *single = NULL;
    double *ordered = NULL;
    flat.columns = malloc((size_t)table->n_columns * sizeof *flat.columns);
    single = malloc((size_t)(m * p + m) * sizeof *single);
    ordered = malloc((size_t)(m * p + m) * sizeof *ordered);
    if (!flat.columns || !single || !ordered) {
        goto done;
    }
    memcpy(flat.columns, table->columns, (size_t)table->n_columns * sizeof *flat.columns);
    wf_table_coalesce(&flat);
    int shared = 0;
    for (ptrdiff_t j = p; j < table->n_columns && !shared; j++) {
        for (ptrdiff_t k = 0; k < p && !shared; k++) {
            shared = wf_column_overlap(table, k, j) != WF_OVERLAP_NONE;
        }
    }
    const ptrdiff_t centre = centre_of(p, m, coef, intercept, ordered + m * p);
    const ptrdiff_t last = centre < 0 ? p - 1 : centre; /* where the last input goes */
    memcpy(ordered, coef, (size_t)(m * p) * sizeof *ordered);
    if (centre >= 0) { /* it changes places with the last input */
        const wf_column moved = flat.columns[p - 1];
        flat.columns[p - 1] = flat.columns[centre];
        flat.columns[centre] = moved;
        for (ptrdiff_t j = 0; j < m; j++) {
            ordered[j * p + centre] = coef[j * p + p - 1];
            ordered[j * p + p - 1] = 1;
        }
    }
    for (ptrdiff_t i = 0; i < m * p; i++) {
        single[i] = (float)ordered[i];
    }
    for (ptrdiff_t j = 0; j < m; j++) {
        single[m * p + j] = (float)intercept[j];
    }
    /* A dry run comes first where an output is an input: to find out later would be too late. */
    for (int dry = shared && check_finite; dry >= 0; dry--) {
        apply_job job = {.table = &flat, .p = p, .m = m, .dry = dry};
        job.centred = centre >= 0;
        job.last = last;
        job.check = check_finite && (dry || !shared);
        plan(&job, shared, moves && !dry);
        job.coef = job.wide ? (const void *)ordered : (const void *)single;
        job.intercept = job.wide ? (const void *)intercept : (const void *)(single + m * p);
        status = locate(run(&job, n_threads, dry ? NULL : moves), &job, table, p, fault);
        free(job.fault);
        if (status != WF_OK) {
            break;
        }
    }
done:
    free(ordered);
    free(single);
    free(flat.columns);
    return status;
}

/* -- the bandwidth that apply is held to -- */

typedef struct {
    float *out;
    const float *a, *b;
    float scalar;
    ptrdiff_t n;
    int n_tasks;
} triad_job;

static void triad_task(void *context, int t)
{
    const triad_job *job = context;
    const ptrdiff_t step = (job->n / job->n_tasks + LINE - 1) / LINE * LINE;
    const ptrdiff_t start = t * step < job->n ? t * step : job->n;
    const ptrdiff_t stop = start + step < job->n ? start + step : job->n;
    wf_k->triad(stop - start, job->a + start, job->b + start, job->scalar, job->out + start);
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

void wf_triad(float *out, const float *a, const float *b, float scalar, ptrdiff_t n, int n_threads)
{
    triad_job job = {out, a, b, scalar, n, n_threads};
    wf_parallel(n_threads, n_threads, triad_task, &job);
}
