/* absolute_error: the schedule of the passes.
 *
 *   F(A, b) = 1/(N m) sum_ij |r_ij|
 *           + beta/S sum_s max(0, sum_{i in s} |yhat_i,m - yhat_i,m-1|  -  c_s)
 *
 * (Shou, Bhattacharjya, Ding, Zhao, Li and Gao, Less is More: Efficient Weight Farcasting with
 * 1-Layer Neural Network, 2025, arXiv:2505.02714) is minimised exactly. Unknowns fall into units
 * that share nothing: one per target, but for the last two targets when the hinge couples them.
 * Every unit goes through the same steps, after Portnoy and Koenker, The Gaussian hare and the
 * Laplacian tortoise, 1997, doi:10.1214/ss/1030037960:
 *
 *   sample   one pass takes every D-th row, at a scattered offset. The unit is solved on the
 *            sample: its centre. Where D is 1 the sample is everything, and that is all.
 *   band     a pass sorts rows by their residual r at the centre. |r| <= kappa h: the row is kept.
 *            Else only its sign is: it enters a linear term. h is the size of the whitened row, so
 *            that |u'd| <= h |d| for any step d.
 *   solve    minimise over the kept rows and the linear term. The minimum bounds F from below
 *            wherever it lies, and if it lies within |d| <= kappa no dropped row has changed its
 *            sign: F is the same there, and this is its minimum. Else the solution is the next
 *            centre, with a wider band.
 *
 * Below this file: sample, band, join, solve and exchange, which do not know each other; below them
 * whiten and unit. */
#include "solve/lad/lad.h"

#include <assert.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "core/parallel.h"
#include "solve/lad/band.h"
#include "solve/lad/exchange.h"
#include "solve/lad/join.h"
#include "solve/lad/sample.h"
#include "solve/lad/solve.h"
#include "solve/lad/unit.h"
#include "solve/lad/whiten.h"

enum {
    PATIENCE = 8,    /* passes, of which most fits take two or three. A problem that these do not
                      * settle is loaded whole, where memory holds it */
    MOST_PASSES = 40 /* where it does not; the error then gives the gap that was reached */
};

/* -- life -- */

static void lad_free(wf_fit *fit)
{
    wf_lad *s = fit->solver;
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

static wf_status lad_new(wf_fit *fit)
{
    const wf_fit_options *o = &fit->options;
    wf_lad *s = calloc(1, sizeof *s);
    fit->solver = s;
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
    return wf_sample_begin(fit, o->n_rows / wf_sample_rows(fit));
}

static wf_status lad_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group,
                                ptrdiff_t start, wf_fault *fault)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m,
                    groups = s->hinged ? fit->options.n_groups : 0;
    assert(start >= 0 && segment->n_columns >= columns);
    s->segment_start = start;
    return s->phase == WF_LAD_SAMPLE
               ? wf_scan(segment, columns, group, groups, fit->options.n_threads, wf_sample_visit,
                         fit, 0, fault)
               : wf_scan(segment, columns, group, groups, fit->options.n_threads, wf_band_visit,
                         fit, wf_band_room(fit), fault);
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
    wf_unit *unit = &wf_lad_of(job->fit)->unit[t];
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
    assert(fit->options.n_threads > 0);
    atomic_init(&job.status, WF_OK);
    ptrdiff_t largest = wf_lad_of(fit)->phase == WF_LAD_SAMPLE ? wf_lad_of(fit)->n_sample : 0;
    for (ptrdiff_t i = 0; i < wf_lad_of(fit)->n_units; i++) {
        largest = wf_lad_of(fit)->unit[i].kept > largest ? wf_lad_of(fit)->unit[i].kept : largest;
    }
    /* solvers side by side need memory side by side */
    ptrdiff_t threads = WF_LAD_SOLVER_ROWS / (largest + 1);
    threads = threads < 1 ? 1 : threads < fit->options.n_threads ? threads : fit->options.n_threads;
    wf_parallel((int)wf_lad_of(fit)->n_units, (int)threads, solve_task, &job);
    return (wf_status)atomic_load(&job.status);
}

/* -- the end -- */

/* Coefficients, F and gap of all units. */
static void finish(wf_fit *fit)
{
    const wf_lad *s = fit->solver;
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
    wf_lad *s = fit->solver;
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
    return fit->info.n_passes >= PATIENCE && rows <= (double)WF_LAD_SOLVER_ROWS &&
           rows * columns * sizeof(double) <= (double)WF_LAD_SAMPLE_BYTES;
}

/* After a sample pass: every unit's centre, and what it shows. */
/* Whether a pass brought every row of the sample: segments may say where they start, and only their
 * rows were counted. */
static int sample_is_whole(const wf_lad *s)
{
    for (ptrdiff_t k = 0; k < s->n_sample; k++) {
        if (!s->taken[k]) {
            return 0;
        }
    }
    return 1;
}

static wf_status advance_sample(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    wf_lad *s = fit->solver;
    if (!sample_is_whole(s)) {
        return WF_BAD_SEGMENTS;
    }
    wf_status status = wf_whiten_sample(fit);
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
    wf_sample_end(s); /* room for the bands */
    return status;
}

/* After a band pass: where every unit looks next, or that it is done. */
static wf_status advance_band(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    wf_lad *s = fit->solver;
    s->n_stray = 0;
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        s->n_stray += s->lane_strays[lane];
    }
    wf_status status;
    if (s->n_stray) { /* the pass was made with too few directions and shows nothing else */
        status = wf_whiten_strays(fit);
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

static wf_status lad_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    const wf_status status = wf_lad_of(fit)->phase == WF_LAD_SAMPLE
                                 ? advance_sample(fit, interrupt, context)
                                 : advance_band(fit, interrupt, context);
    if (status != WF_OK) {
        return status;
    }
    if (!choose_active(fit) || fit->info.n_passes >= MOST_PASSES) {
        finish(fit);
        return WF_OK;
    }
    return should_load_whole(fit) ? wf_sample_begin(fit, 1) : wf_band_prepare(fit);
}

static ptrdiff_t lad_null(const wf_fit *fit, double *out)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t width = fit->options.p + 1;
    const ptrdiff_t n_null = fit->options.p + (fit->options.fit_intercept ? 1 : 0) - s->rank;
    memcpy(out, s->null, (size_t)(n_null * width) * sizeof *out);
    return n_null;
}

const wf_method wf_lad_method = {
    .new = lad_new,
    .free = lad_free,
    .accumulate = lad_accumulate,
    .advance = lad_advance,
    .null = lad_null,
    .state = wf_lad_state,
    .export = wf_lad_export,
    .absorb = wf_lad_absorb,
};
