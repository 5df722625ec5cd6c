/* absolute_error: the paper's objective, exactly, in a few passes.
 *
 * Unknowns fall into units that share nothing: one per target, but for the last two targets when
 * the hinge couples them. Every unit goes through the same steps (after Portnoy and Koenker 1997):
 *
 *   sample   one pass takes every D-th row (at a scattered offset); the unit is solved on the
 * sample: its centre. Where D is 1 the sample is everything, and that is all. band     a pass sorts
 * rows by their residual r at the centre. |r| <= kappa h: the row is kept. Else only its sign is:
 * it enters a linear term. h is the size of the whitened row, so that |x'd| <= h |d| for any step
 * d. solve    minimise over the kept rows and the linear term. The minimum bounds F from below
 * wherever it lies, and if it lies within |d| <= kappa no dropped row has changed its sign: F is
 * the same there, and this is its minimum. Else the solution is the next centre, with a wider band.
 */
#include "solve/lad.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "kernels/kernels.h"
#include "solve/blas.h"

enum { MOST_PASSES = 40 };

/* -- life -- */

void wf_lad_free(wf_lad *s)
{
    if (!s) {
        return;
    }
    for (ptrdiff_t i = 0; i < s->n_units && s->unit; i++) {
        wf_unit_release(&s->unit[i]);
        free(s->unit[i].best);
        free(s->unit[i].mixed);
    }
    free(s->unit);
    free(s->sample);
    free(s->sample_group);
    free(s->taken);
    free(s->L);
    free(s->stray);
    free(s->lane_strays);
    free(s->sums);
    free(s);
}

/* Rows of the sample: about the size at which solving it and solving the band it leaves cost the
 * same. */
static ptrdiff_t sample_rows(const wf_fit *fit)
{
    const double n = (double)fit->options.n_rows, q = (double)fit->options.p + 1;
    const double columns = (double)(fit->options.p + fit->options.m);
    double rows = pow(3 * q * n, 2.0 / 3.0);
    rows = fmin(fmin(rows, WF_LAD_SAMPLE_BYTES / 8 / columns), 2 * WF_LAD_SOLVER_ROWS);
    rows = fmax(rows, 50 * q);
    return fit->options.n_rows <= WF_LAD_DIRECT_ROWS || rows > 0.5 * n ? fit->options.n_rows
                                                                       : (ptrdiff_t)rows;
}

/* The next pass takes one row of every `stride`. */
static wf_status begin_sample(wf_fit *fit, ptrdiff_t stride)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    s->phase = WF_LAD_SAMPLE;
    s->stride = stride;
    s->n_sample = (fit->options.n_rows + stride - 1) / stride;
    s->sample = malloc((size_t)s->n_sample * (size_t)columns * sizeof *s->sample);
    s->sample_group = malloc((size_t)(s->hinged ? s->n_sample : 1) * sizeof *s->sample_group);
    s->taken = calloc((size_t)s->n_sample, 1);
    return s->sample && s->sample_group && s->taken ? WF_OK : WF_NO_MEMORY;
}

static void end_sample(wf_lad *s)
{
    free(s->sample);
    free(s->sample_group);
    free(s->taken);
    s->sample = NULL;
    s->sample_group = NULL;
    s->taken = NULL;
}

wf_status wf_lad_new(wf_fit *fit)
{
    const wf_fit_options *o = &fit->options;
    wf_lad *s = calloc(1, sizeof *s);
    fit->lad = s;
    if (!s) {
        return WF_NO_MEMORY;
    }
    s->hinged = o->beta > 0;
    s->n_units = s->hinged ? o->m - 1 : o->m;
    s->eta = s->hinged ? o->beta / (double)o->n_groups * (double)o->n_rows * (double)o->m : 0;
    s->unit = calloc((size_t)s->n_units, sizeof *s->unit);
    s->L = calloc((size_t)(3 * (o->p + 1) * (o->p + 1)), sizeof *s->L);
    s->stray = malloc((size_t)(WF_SCAN_LANES * WF_LAD_STRAYS * (o->p + 1)) * sizeof *s->stray);
    s->lane_strays = calloc(WF_SCAN_LANES, sizeof *s->lane_strays);
    s->sums = calloc((size_t)(o->p + o->m + 1), sizeof *s->sums);
    if (!s->unit || !s->L || !s->sums || !s->stray || !s->lane_strays) {
        return WF_NO_MEMORY;
    }
    s->null = s->L + (o->p + 1) * (o->p + 1);
    s->span = s->null + (o->p + 1) * (o->p + 1);
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit *u = &s->unit[i];
        u->parts = s->hinged && i == s->n_units - 1 ? 2 : 1;
        u->target = i;
        u->value = INFINITY;
        u->bound = 0; /* F is a sum of sizes */
        /* best and centre: parts x (p + 1) each */
        u->best = calloc((size_t)(2 * u->parts * (o->p + 1)), sizeof *u->best);
        u->mixed = calloc(WF_LAD_KINDS * WF_LAD_CELLS, 1);
        if (!u->best || !u->mixed) {
            return WF_NO_MEMORY;
        }
        u->centre = u->best + u->parts * (o->p + 1);
    }
    return begin_sample(fit, o->n_rows / sample_rows(fit));
}

/* -- the sample -- */

static uint64_t scatter(uint64_t x) /* splitmix64 */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static wf_status take_sample(void *context, int lane, const wf_rows_block *rows, double *room)
{
    (void)lane;
    (void)room;
    wf_fit *fit = context;
    wf_lad *s = fit->lad;
    const ptrdiff_t columns = fit->options.p + fit->options.m, D = s->stride,
                    first = rows->start + s->segment_start;
    for (ptrdiff_t k = first / D; k * D < first + rows->n; k++) {
        const ptrdiff_t width = fit->options.n_rows - k * D < D ? fit->options.n_rows - k * D : D;
        const ptrdiff_t row =
            k * D + (ptrdiff_t)(D > 1 ? scatter((uint64_t)k) % (uint64_t)width : 0) - first;
        if (row < 0 || row >= rows->n) {
            continue;
        }
        for (ptrdiff_t c = 0; c < columns; c++) {
            s->sample[c * s->n_sample + k] = rows->column[c][row];
        }
        s->taken[k] = 1;
        if (s->hinged) {
            s->sample_group[k] = (int32_t)rows->group[row];
        }
    }
    return WF_OK;
}

wf_status wf_lad_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group, ptrdiff_t start,
                            wf_fault *fault)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t columns = fit->options.p + fit->options.m,
                    groups = s->hinged ? fit->options.n_groups : 0;
    s->segment_start = start;
    return s->phase == WF_LAD_SAMPLE
               ? wf_scan(segment, columns, group, groups, fit->options.n_threads, take_sample, fit,
                         0, fault)
               : wf_scan(segment, columns, group, groups, fit->options.n_threads, wf_band_visit,
                         fit, wf_band_room(fit), fault);
}

/* L, null and span from a matrix A of [x, 1] rows (column-major, `rows` >= q of them; overwritten):
 * columns [x, 1] times L' have mean square 1 over n rows and are independent. Rank-revealing QR; a
 * column that depends on others to the last bits is left out and gets the coefficient 0. */
static wf_status whiten_matrix(wf_fit *fit, double *A, int rows, double n)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t p = fit->options.p;
    const int q = (int)p + (fit->options.fit_intercept ? 1 : 0), lwork = 4 * (q + 1) * 32;
    wf_status status = WF_NO_MEMORY;
    double *work = malloc((size_t)(lwork + 2 * q + q * q) * sizeof *work);
    int *pivot = calloc((size_t)q, sizeof *pivot);
    if (!work || !pivot) {
        goto done;
    }
    status = WF_OK;
    double *tau = work + lwork, *size = tau + q, *R = size + q;
    for (int k = 0; k < q; k++) { /* columns of unit norm, without overflow on the way */
        double *column = A + (ptrdiff_t)k * rows, most = 0, sum = 0;
        for (int i = 0; i < rows; i++) {
            most = fmax(most, fabs(column[i]));
        }
        for (int i = 0; i < rows && most > 0; i++) {
            sum += column[i] / most * (column[i] / most);
        }
        size[k] = most > 0 ? most * sqrt(sum) : 1;
        for (int i = 0; i < rows; i++) {
            column[i] /= size[k];
        }
    }
    int info;
    WF_BLAS(dgeqp3_)(&rows, &q, A, &rows, pivot, tau, work, &lwork, &info);
    const double least =
        64 * DBL_EPSILON * sqrt((double)rows); /* of unit columns: what rounding leaves */
    int rank = 0;
    while (rank < q && fabs(A[(ptrdiff_t)rank * rows + rank]) > least) {
        rank++;
    }
    for (int k = 0; k < q; k++) {
        for (int l = 0; l < q; l++) {
            s->span[(pivot[k] - 1) * q + l] =
                l <= k ? A[(ptrdiff_t)k * rows + l] * size[pivot[k] - 1] : 0;
        }
    }
    for (int k = 0; k < rank; k++) {
        for (int l = 0; l < rank; l++) {
            R[k * rank + l] = l <= k ? A[(ptrdiff_t)k * rows + l] : 0;
        }
    }
    if (rank) {
        WF_BLAS(dtrtri_)("U", "N", &rank, R, &rank, &info, 1, 1);
    }
    memset(s->L, 0, (size_t)((p + 1) * (p + 1)) * sizeof *s->L);
    for (int t = 0; t < rank; t++) { /* u = R^-T x: row t of L is column t of R^-1 */
        for (int k = 0; k <= t; k++) {
            s->L[t * (p + 1) + pivot[k] - 1] = R[t * rank + k] / size[pivot[k] - 1] * sqrt(n);
        }
    }
    memset(s->null, 0, (size_t)((p + 1) * (p + 1)) * sizeof *s->null);
    for (int d = rank; d < q; d++) { /* column d less R^-1 R_d of the independent ones */
        double *null = s->null + (d - rank) * (p + 1);
        null[pivot[d] - 1] = 1 / size[pivot[d] - 1];
        for (int k = 0; k < rank; k++) {
            double weight = 0;
            for (int l = k; l < rank; l++) {
                weight += R[l * rank + k] * A[(ptrdiff_t)d * rows + l];
            }
            null[pivot[k] - 1] = -weight / size[pivot[k] - 1];
        }
    }
    s->rank = rank;
    fit->info.rank = rank < p ? rank : p;
done:
    free(work);
    free(pivot);
    return status;
}

static wf_status whiten_sample(wf_fit *fit)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t p = fit->options.p, n = s->n_sample,
                    q = p + (fit->options.fit_intercept ? 1 : 0);
    const ptrdiff_t rows = n > q ? n : q;
    double *A = calloc((size_t)(rows * q), sizeof *A);
    if (!A) {
        return WF_NO_MEMORY;
    }
    for (ptrdiff_t k = 0; k < q; k++) {
        for (ptrdiff_t i = 0; i < n; i++) {
            A[k * rows + i] = k < p ? s->sample[k * n + i] : 1;
        }
    }
    const wf_status status = whiten_matrix(fit, A, (int)rows, (double)n);
    free(A);
    return status;
}

/* The span of the sample and the rows found outside it. */
static wf_status widen_span(wf_fit *fit)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t p = fit->options.p, q = p + (fit->options.fit_intercept ? 1 : 0);
    const ptrdiff_t rows = q + s->n_stray;
    double *A = calloc((size_t)(rows * q), sizeof *A);
    if (!A) {
        return WF_NO_MEMORY;
    }
    ptrdiff_t at = q;
    for (ptrdiff_t k = 0; k < q; k++) {
        memcpy(A + k * rows, s->span + k * q, (size_t)q * sizeof *A);
    }
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        for (int i = 0; i < s->lane_strays[lane]; i++, at++) {
            const double *row = s->stray + (lane * WF_LAD_STRAYS + i) * (p + 1);
            for (ptrdiff_t k = 0; k < q; k++) {
                A[k * rows + at] = row[k];
            }
        }
    }
    const wf_status status = whiten_matrix(fit, A, (int)rows, (double)s->n_sample);
    free(A);
    return status;
}

/* b (p + 1) += L'z: a step in whitened unknowns, in those of the columns. */
void wf_lad_unwhiten(const wf_fit *fit, const double *z, double *b)
{
    const wf_lad *s = fit->lad;
    for (ptrdiff_t t = 0; t < s->rank; t++) {
        wf_k->axpy(fit->options.p + 1, z[t], s->L + t * (fit->options.p + 1), b);
    }
}

/* -- solving units in parallel -- */

typedef struct {
    wf_fit *fit;
    wf_unit_solver *solve;
    int (*interrupt)(void *);
    void *context;
    atomic_int status;
} solve_job;

static void solve_task(void *context, int t)
{
    solve_job *job = context;
    wf_unit *unit = &job->fit->lad->unit[t];
    if (unit->state == WF_UNIT_ACTIVE && atomic_load(&job->status) == WF_OK) {
        const wf_status status = job->solve(job->fit, unit, job->interrupt, job->context);
        if (status != WF_OK) {
            atomic_store(&job->status, (int)status);
        }
    }
}

static wf_status solve_units(wf_fit *fit, wf_unit_solver *solve, int (*interrupt)(void *),
                             void *context)
{
    solve_job job = {.fit = fit, .solve = solve, .interrupt = interrupt, .context = context};
    atomic_init(&job.status, WF_OK);
    ptrdiff_t largest = fit->lad->phase == WF_LAD_SAMPLE ? fit->lad->n_sample : 0;
    for (ptrdiff_t i = 0; i < fit->lad->n_units; i++) {
        largest = fit->lad->unit[i].kept > largest ? fit->lad->unit[i].kept : largest;
    }
    ptrdiff_t threads =
        WF_LAD_SOLVER_ROWS / (largest + 1); /* solvers side by side need memory side by side */
    threads = threads < 1 ? 1 : threads < fit->options.n_threads ? threads : fit->options.n_threads;
    wf_parallel((int)fit->lad->n_units, (int)threads, solve_task, &job);
    return (wf_status)atomic_load(&job.status);
}

/* -- the end -- */

static void finish(wf_fit *fit)
{
    const wf_lad *s = fit->lad;
    const ptrdiff_t p = fit->options.p;
    const double count = (double)fit->options.n_rows * (double)fit->options.m;
    double value = 0, bound = 0, noise = 0;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        const wf_unit *u = &s->unit[i];
        value += u->value;
        bound += u->bound;
        noise += u->noise;
        for (int part = 0; part < u->parts; part++) {
            memcpy(fit->coef + (u->target + part) * p, u->best + part * (p + 1),
                   (size_t)p * sizeof(double));
            fit->intercept[u->target + part] = -0.0 + u->best[part * (p + 1) + p];
        }
    }
    fit->info.objective = value / count;
    fit->info.dual_gap = wf_relative_gap(value, bound, noise, fit->options.tol);
    fit->info.converged = fit->info.dual_gap <= fit->options.tol;
    fit->needs_pass = 0;
}

/* Which unfinished units take part in the next pass: as many as the memory for kept rows allows. */
static int choose_active(wf_fit *fit)
{
    wf_lad *s = fit->lad;
    double left = WF_LAD_KEPT_BYTES;
    int any = 0;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit *u = &s->unit[i];
        if (u->state == WF_UNIT_DONE) {
            continue;
        }
        const double need = wf_band_bytes(fit, u);
        u->state = !any || need <= left ? WF_UNIT_ACTIVE : WF_UNIT_WAITING;
        if (u->state == WF_UNIT_ACTIVE) {
            u->limit = any ? need : fmax(need, left);
            left -= need;
            any = 1;
        }
    }
    return any;
}

/* A problem that bands do not settle, and that memory holds whole. */
static int should_load_whole(const wf_fit *fit)
{
    const double rows = (double)fit->options.n_rows,
                 columns = (double)(fit->options.p + fit->options.m);
    return fit->info.n_passes >= WF_LAD_PATIENCE && rows <= (double)WF_LAD_SOLVER_ROWS &&
           rows * columns * sizeof(double) <= (double)WF_LAD_SAMPLE_BYTES;
}

static wf_status advance_sample(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    wf_lad *s = fit->lad;
    wf_status status = whiten_sample(fit);
    if (status == WF_OK) {
        wf_sample_sums(fit);
        for (ptrdiff_t i = 0; i < s->n_units; i++) {
            if (s->unit[i].state != WF_UNIT_DONE) {
                s->unit[i].state = WF_UNIT_ACTIVE;
                memset(s->unit[i].centre, 0,
                       (size_t)(s->unit[i].parts * (fit->options.p + 1)) * sizeof(double));
            }
        }
        status = solve_units(fit, wf_sample_solve, interrupt, context);
    }
    s->phase = WF_LAD_BAND;
    end_sample(s); /* room for the bands */
    return status;
}

static wf_status advance_band(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    wf_lad *s = fit->lad;
    s->n_stray = 0;
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        s->n_stray += s->lane_strays[lane];
    }
    wf_status status;
    if (s->n_stray) { /* the pass was made with too few directions and shows nothing else */
        status = widen_span(fit);
        memset(s->lane_strays, 0, WF_SCAN_LANES * sizeof *s->lane_strays);
    } else {
        status = wf_band_join(fit);
        if (status == WF_OK) {
            status = solve_units(fit, wf_band_solve, interrupt, context);
        }
    }
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit_release(&s->unit[i]);
    }
    return status;
}

wf_status wf_lad_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    const wf_status status = fit->lad->phase == WF_LAD_SAMPLE
                                 ? advance_sample(fit, interrupt, context)
                                 : advance_band(fit, interrupt, context);
    if (status != WF_OK) {
        return status;
    }
    if (!choose_active(fit) || fit->info.n_passes >= MOST_PASSES) {
        finish(fit);
        return WF_OK;
    }
    return should_load_whole(fit) ? begin_sample(fit, 1) : wf_band_prepare(fit);
}
