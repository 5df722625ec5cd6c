/* squared_error: one pass for the Gram matrix of shifted columns, a second only where the first
 * cannot resolve the residual.
 *
 *   F(A, b) = ( sum_ij (y_ij - x_i'A_j - b_j)^2 + alpha * sum_kj A_kj^2 ) / (N m)
 *
 * With an intercept the columns are centred, which leaves b unpenalised. Rank-deficient inputs get
 * the solution of minimum norm. Fewer rows than unknowns are kept as they are, and solved at once
 * (rows.c). */
#include "solve/least_squares/least_squares.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/least_squares/exchange.h"
#include "solve/least_squares/inverse.h"
#include "solve/least_squares/intercept.h"
#include "solve/least_squares/rows.h"
#include "solve/least_squares/state.h"
#include "solve/scan.h"

static void least_squares_free(wf_fit *fit)
{
    wf_least_squares *s = fit->solver;
    if (s) {
        free(s->shift);
        free(s->lane);
        free(s->rows);
        free(s);
    }
}

static wf_status least_squares_new(wf_fit *fit)
{
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    wf_least_squares *s = calloc(1, sizeof *s);
    fit->solver = s;
    if (!s) {
        return WF_NO_MEMORY;
    }
    if (fit->options.n_rows < p + (fit->options.fit_intercept != 0)) {
        /* one more than asked for: no allocation of nothing */
        s->rows = malloc((size_t)(fit->options.n_here * (p + m) + 1) * sizeof *s->rows);
        s->shift = calloc((size_t)(2 * (p + m)), sizeof *s->shift);
        s->mean = s->shift ? s->shift + p + m : NULL;
        return s->rows && s->shift ? WF_OK : WF_NO_MEMORY;
    }
    s->width = p * (p + m) + p + 2 * m;
    /* wide problems: fewer lanes, at most 64 MiB */
    s->lanes = ((ptrdiff_t)64 << 20) / (ptrdiff_t)sizeof(double) / s->width;
    s->lanes = s->lanes < 1 ? 1 : s->lanes > WF_SCAN_LANES ? WF_SCAN_LANES : s->lanes;
    s->lane = calloc((size_t)(s->lanes * s->width), sizeof *s->lane);
    s->shift = calloc((size_t)(2 * (p + m) + p * p + p * m + m + 2 * p * p), sizeof *s->shift);
    if (!s->lane || !s->shift) {
        return WF_NO_MEMORY;
    }
    s->mean = s->shift + p + m;
    s->gram = s->mean + p + m;
    s->cross = s->gram + p * p;
    s->square = s->cross + p * m;
    s->inverse = s->square + m;
    s->null = s->inverse + p * p;
    return WF_OK;
}

enum { MOST_PASSES = 6 }; /* each gains the digits that a factor of the matrix is good for */

/* Where the terms of a target's residual, a difference of sums, are so many times as large as what
 * is left of them, it has lost so many digits that it is looked at itself. */
static const double RESOLVED = 1e6;

static wf_status find_shift(void *context, int lane, const wf_rows_block *rows, double *room)
{
    (void)room;
    wf_fit *fit = context;
    wf_least_squares *s = fit->solver;
    if (lane == 0 && !s->have_shift) {
        for (ptrdiff_t c = 0; c < fit->options.p + fit->options.m; c++) {
            s->shift[c] = wf_k->sum(rows->n, rows->column[c]) / (double)rows->n;
        }
        s->have_shift = 1;
    }
    return WF_OK;
}

/* Adds n rows to the statistics of a lane. `columns`: p inputs, m targets or residuals, each in
 * WF_SCAN_ROWS places. */
static void add_products(const wf_fit *fit, double *stat, ptrdiff_t n, const double *columns)
{
    const int p = (int)fit->options.p, m = (int)fit->options.m, rows = (int)n, ld = WF_SCAN_ROWS;
    const double one = 1;
    double *cross = stat + fit->options.p * p, *sums = cross + fit->options.p * m,
           *squares = sums + p + m;
    assert(n <= WF_SCAN_ROWS);
    WF_BLAS(dsyrk_)("U", "T", &p, &rows, &one, columns, &ld, &one, stat, &p, 1, 1);
    WF_BLAS(dgemm_)
    ("T", "N", &p, &m, &rows, &one, columns, &ld, columns + p * ld, &ld, &one, cross, &p, 1, 1);
    for (int c = 0; c < p + m; c++) {
        sums[c] += wf_k->sum(n, columns + c * ld);
    }
    for (int j = 0; j < m; j++) {
        squares[j] += wf_k->dot(n, columns + (p + j) * ld, columns + (p + j) * ld);
    }
}

static wf_status visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    wf_fit *fit = context;
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    for (ptrdiff_t c = 0; c < p + m; c++) {
        double *to = room + c * WF_SCAN_ROWS;
        if (s->refining && c >= p) { /* residual */
            double *b = room + (p + m) * WF_SCAN_ROWS;
            memcpy(b, fit->coef + (c - p) * p, (size_t)p * sizeof *b);
            b[p] = fit->intercept[c - p];
            wf_k->residual(rows->n, p, rows->column, rows->column[c], b, to);
            continue;
        }
        for (ptrdiff_t i = 0; i < rows->n; i++) {
            to[i] = rows->column[c][i] - s->shift[c];
        }
    }
    add_products(fit, s->lane + lane % s->lanes * s->width, rows->n, room);
    return WF_OK;
}

/* Rows as they are, behind those of the segments before. */
static wf_status keep(void *context, int lane, const wf_rows_block *rows, double *room)
{
    (void)lane;
    (void)room;
    const wf_fit *fit = context;
    const wf_least_squares *s = fit->solver;
    double *to = s->rows + fit->rows_seen + rows->start;
    for (ptrdiff_t c = 0; c < fit->options.p + fit->options.m; c++) {
        memcpy(to + c * fit->options.n_here, rows->column[c], (size_t)rows->n * sizeof *to);
    }
    return WF_OK;
}

static wf_status least_squares_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group,
                                          ptrdiff_t start, wf_fault *fault)
{
    (void)group;
    (void)start;
    wf_least_squares *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    if (s->rows) {
        return wf_scan(segment, columns, 0, 0, fit->options.n_threads, keep, fit, 0, fault);
    }
    if (fit->options.fit_intercept && !s->have_shift && segment->n_rows) {
        /* any value near the mean will do */
        wf_table head = *segment;
        for (int d = 0; d < head.ndim; d++) {
            while (head.n_rows > WF_SCAN_ROWS && head.shape[d] > 1) {
                head.n_rows /= head.shape[d];
                head.shape[d] = (head.shape[d] + 1) / 2;
                head.n_rows *= head.shape[d];
            }
        }
        const wf_status status = wf_scan(&head, columns, 0, 0, 1, find_shift, fit, 0, fault);
        if (status != WF_OK) {
            return status;
        }
    }
    /* Lanes are shared when there are fewer than the scan's: then one thread, so that sums keep
     * their order. */
    const int threads = s->lanes < WF_SCAN_LANES ? 1 : fit->options.n_threads;
    const ptrdiff_t room = columns * WF_SCAN_ROWS + fit->options.p + 1; /* and coefficients */
    return wf_scan(segment, columns, 0, 0, threads, visit, fit, room, fault);
}

/* Lanes into the first lane's place, in order; the Gram matrix made whole. */
static const double *join_lanes(wf_least_squares *s, ptrdiff_t p)
{
    double *total = s->lane;
    for (ptrdiff_t l = 1; l < s->lanes; l++) {
        wf_k->axpy(s->width, 1.0, s->lane + l * s->width, total);
    }
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = 0; l < k; l++) {
            total[l * p + k] = total[k * p + l];
        }
    }
    return total;
}

/* coef_j += inverse * right_j, without its part in the null space (minimum norm). */
static void step(wf_fit *fit, const double *right)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    for (ptrdiff_t j = 0; j < fit->options.m; j++) {
        double *coef = fit->coef + j * p;
        for (ptrdiff_t k = 0; k < p; k++) {
            wf_k->axpy(p, right[j * p + k], s->inverse + k * p, coef);
        }
        for (ptrdiff_t t = 0; t < s->n_null; t++) {
            wf_k->axpy(p, -wf_k->dot(p, coef, s->null + t * p), s->null + t * p, coef);
        }
    }
}

/* From N m F, N m (F - F*) and the sum of squares that rounding of F is measured by. */
static void conclude(wf_fit *fit, double total, double above, double size)
{
    const double count = (double)fit->options.n_rows * (double)fit->options.m;
    fit->info.objective = total / count;
    fit->info.dual_gap = wf_relative_gap(total / count, (total - fabs(above)) / count,
                                         4 * DBL_EPSILON * size / count, fit->options.tol);
    if (!isfinite(above) || !isfinite(size) ||
        wf_k->nonfinite(fit->options.m * fit->options.p, fit->coef)) {
        fit->info.dual_gap = NAN; /* products left the range of float64: nothing is certified */
    }
    fit->info.converged = fit->info.dual_gap <= fit->options.tol;
    fit->needs_pass = 0;
}

/* Objective and gap from residual sums of squares and the gradients X'r - alpha a of every target.
 */
static void measure(wf_fit *fit, const double *rss, const double *gradient)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    double total = 0, above = 0, scale = 0;
    for (ptrdiff_t j = 0; j < m; j++) {
        const double *coef = fit->coef + j * p, *g = gradient + j * p;
        total += fmax(rss[j], 0) + fit->options.alpha * wf_k->dot(p, coef, coef);
        for (ptrdiff_t k = 0; k < p; k++) {
            /* F - F* = g'H^-1 g for a quadratic */
            above += g[k] * wf_k->dot(p, s->inverse + k * p, g);
        }
        scale += s->square[j] + (double)fit->options.n_rows * s->shift[p + j] * s->shift[p + j];
    }
    if (wf_k->nonfinite(p * p, s->gram) || wf_k->nonfinite(m * p, s->cross) ||
        wf_k->nonfinite(m, s->square)) {
        above = NAN;
    }
    conclude(fit, total, above, scale);
}

static void first_solution(wf_fit *fit, const double *total)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    const double n = (double)fit->options.n_rows, centre = fit->options.fit_intercept ? 1 : 0;
    const double *cross = total + p * p, *sums = cross + p * m, *squares = sums + p + m;
    for (ptrdiff_t c = 0; c < p + m; c++) {
        s->mean[c] = centre * sums[c] / n;
    }
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = 0; l < p; l++) {
            s->gram[k * p + l] = total[k * p + l] - n * s->mean[k] * s->mean[l];
        }
    }
    for (ptrdiff_t j = 0; j < m; j++) {
        for (ptrdiff_t k = 0; k < p; k++) {
            s->cross[j * p + k] = cross[j * p + k] - n * s->mean[k] * s->mean[p + j];
        }
        s->square[j] = fmax(squares[j] - n * s->mean[p + j] * s->mean[p + j], 0);
    }
}

/* From a refining pass: products of shifted inputs with the residuals of the current solution. */
static void exact_gradient(wf_fit *fit, const double *total, double *rss, double *gradient)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    const double n = (double)fit->options.n_rows, centre = fit->options.fit_intercept ? 1 : 0;
    const double *cross = total + p * p, *sums = cross + p * m, *squares = sums + p + m;
    for (ptrdiff_t j = 0; j < m; j++) {
        const double *coef = fit->coef + j * p;
        const double mean = centre * sums[p + j] / n;
        rss[j] = squares[j] - n * mean * mean;
        for (ptrdiff_t k = 0; k < p; k++) {
            gradient[j * p + k] =
                cross[j * p + k] - n * s->mean[k] * mean - fit->options.alpha * coef[k];
        }
        fit->intercept[j] += mean;
        s->mean[p + j] += mean;
    }
}

static void newton_step(wf_fit *fit, const double *gradient)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    /* the intercept follows the coefficients' change */
    for (ptrdiff_t j = 0; j < fit->options.m; j++) {
        const double *coef = fit->coef + j * p;
        double change = 0;
        for (ptrdiff_t k = 0; k < p && fit->options.fit_intercept; k++) {
            change += coef[k] * (s->mean[k] + s->shift[k]);
        }
        fit->intercept[j] += change;
    }
    step(fit, gradient);
    for (ptrdiff_t j = 0; j < fit->options.m; j++) {
        const double *coef = fit->coef + j * p;
        double change = 0;
        for (ptrdiff_t k = 0; k < p && fit->options.fit_intercept; k++) {
            change += coef[k] * (s->mean[k] + s->shift[k]);
        }
        fit->intercept[j] -= change;
    }
}

/* Solution, residual sums of squares and gradient from the sums of the first pass. Returns how many
 * times as large as a residual its terms are, at the most. */
static double solve_from_sums(wf_fit *fit, double *rss, double *gradient)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    double most = 0;
    step(fit, s->cross);
    wf_least_squares_set_intercept(fit);
    for (ptrdiff_t j = 0; j < fit->options.m; j++) {
        const double *coef = fit->coef + j * p, *cross = s->cross + j * p;
        double reach = 0; /* its square bounds sum |a_k gram_kl a_l| */
        rss[j] = s->square[j];
        for (ptrdiff_t k = 0; k < p; k++) {
            const double fitted = wf_k->dot(p, s->gram + k * p, coef);
            gradient[j * p + k] = cross[k] - fitted - fit->options.alpha * coef[k];
            rss[j] += coef[k] * (fitted - 2 * cross[k]);
            reach += sqrt(fmax(s->gram[k * p + k], 0)) * fabs(coef[k]);
        }
        const double terms = s->square[j] + reach * reach;
        most = fmax(most, terms > 0 ? terms / fabs(rss[j]) : 0);
    }
    return most;
}

static wf_status advance_rows(wf_fit *fit)
{
    double total, above, size;
    const wf_status status = wf_least_squares_solve_rows(fit, &total, &above, &size);
    if (status == WF_OK) {
        conclude(fit, total, above, size);
    }
    return status;
}

static wf_status advance_sums(wf_fit *fit)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    double *gradient = malloc((size_t)(m * p + m) * sizeof *gradient);
    if (!gradient) {
        return WF_NO_MEMORY;
    }
    double *rss = gradient + m * p;
    const double *total = join_lanes(s, p);
    wf_status status = WF_OK;
    int resolved = 1;
    if (s->refining) {
        exact_gradient(fit, total, rss, gradient);
    } else {
        first_solution(fit, total);
        status = wf_least_squares_invert(fit);
        if (status != WF_OK) {
            goto done;
        }
        resolved = solve_from_sums(fit, rss, gradient) <= RESOLVED;
    }
    if (resolved) {
        measure(fit, rss, gradient);
        const int better =
            !fit->info.converged && !isnan(fit->info.dual_gap) && fit->info.n_passes < MOST_PASSES;
        if (better && s->refining) {
            newton_step(fit, gradient);
        }
        resolved = !better;
    }
    if (!resolved) { /* another pass, over the residuals */
        memset(s->lane, 0, (size_t)(s->lanes * s->width) * sizeof *s->lane);
        s->refining = 1;
        fit->needs_pass = 1;
    }
done:
    free(gradient);
    return status;
}

static wf_status least_squares_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    const wf_least_squares *s = fit->solver;
    if (interrupt && interrupt(context)) {
        return WF_INTERRUPTED;
    }
    return s->rows ? advance_rows(fit) : advance_sums(fit);
}

/* Of centred columns; what they say of the columns themselves, the intercept takes back. */
static ptrdiff_t least_squares_null(const wf_fit *fit, double *out)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    for (ptrdiff_t t = 0; t < s->n_null; t++) {
        double *direction = out + t * (p + 1);
        direction[p] = 0;
        for (ptrdiff_t k = 0; k < p; k++) {
            direction[k] = s->null[t * p + k];
            direction[p] -= direction[k] * (s->shift[k] + s->mean[k]);
        }
    }
    return s->n_null;
}

const wf_method wf_least_squares_method = {
    .new = least_squares_new,
    .free = least_squares_free,
    .accumulate = least_squares_accumulate,
    .advance = least_squares_advance,
    .null = least_squares_null,
    .state = wf_least_squares_state,
    .export = wf_least_squares_export,
    .absorb = wf_least_squares_absorb,
};
