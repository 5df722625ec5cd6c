/* squared_error: one pass for the Gram matrix of shifted columns, a second only where the first
 * cannot resolve the residual.
 *
 *   F(A, b) = ( sum_ij (y_ij - x_i'A_j - b_j)^2 + alpha * sum_kj A_kj^2 ) / (N m)
 *
 * With an intercept the columns are centred, which leaves b unpenalised. Rank-deficient inputs get
 * the solution of minimum norm. Fewer rows than unknowns are kept as they are, and solved at once
 * (rows.c). */
#include "solve/least_squares/least_squares.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/least_squares/exchange.h"
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
    s->lanes =
        ((ptrdiff_t)64 << 20) / 8 / s->width; /* wide problems: fewer lanes, at most 64 MiB */
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

enum { MOST_PASSES = 6 };

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

/* lane statistics of columns held in `columns` (p inputs, m targets or residuals), contiguous with
 * WF_SCAN_ROWS */
static void add_products(const wf_fit *fit, double *stat, ptrdiff_t n, const double *columns)
{
    const int p = (int)fit->options.p, m = (int)fit->options.m, rows = (int)n, ld = WF_SCAN_ROWS;
    const double one = 1;
    double *cross = stat + p * p, *sums = cross + p * m, *squares = sums + p + m;
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
            double b[p + 1];
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
    if (fit->options.fit_intercept && !s->have_shift &&
        segment->n_rows) { /* any value near the mean will do */
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
    return wf_scan(segment, columns, 0, 0, threads, visit, fit, columns * WF_SCAN_ROWS, fault);
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

/* Into `inverse`, whose scaled matrix has full rank beyond doubt: 0, else nonzero. `matrix` (p x p)
 * is overwritten. */
static int invert_by_cholesky(wf_least_squares *s, int p, double *matrix, const double *scale,
                              double *work, int *integers)
{
    double norm = 0, rcond;
    int info;
    for (int k = 0; k < p; k++) {
        norm = fmax(norm, wf_k->sum_abs(p, matrix + k * p));
    }
    WF_BLAS(dpotrf_)("L", &p, matrix, &p, &info, 1);
    if (info != 0) {
        return info;
    }
    WF_BLAS(dpocon_)("L", &p, matrix, &p, &norm, &rcond, work, integers, &info, 1);
    if (info != 0 || !(rcond > 1e-6)) {
        return 1;
    }
    WF_BLAS(dpotri_)("L", &p, matrix, &p, &info, 1);
    for (int k = 0; k < p; k++) {
        for (int l = k; l < p; l++) {
            s->inverse[k * p + l] = s->inverse[l * p + k] = matrix[k * p + l] * scale[k] * scale[l];
        }
    }
    return info;
}

/* Directions that rounding cannot tell from zero, `vectors` of the scaled matrix, back in the
 * unscaled space and made orthonormal there, into `null`. */
static int span_null(wf_least_squares *s, int p, const double *vectors, int n_null,
                     const double *scale, double *tau, double *work, int lwork)
{
    for (ptrdiff_t t = 0; t < n_null; t++) {
        double *null = s->null + t * p, most = 0;
        for (int k = 0; k < p; k++) {
            null[k] = vectors[t * p + k] * (scale[k] > 0 ? scale[k] : 1);
            most = fmax(most, fabs(null[k]));
        }
        for (int k = 0; k < p; k++) { /* scales may be of any size: their squares need not fit */
            null[k] /= most;
        }
    }
    int info = 0;
    if (n_null) {
        WF_BLAS(dgeqrf_)(&p, &n_null, s->null, &p, tau, work, &lwork, &info);
        WF_BLAS(dorgqr_)(&p, &n_null, &n_null, s->null, &p, tau, work, &lwork, &info);
    }
    s->n_null = n_null;
    return info;
}

/* The same through the eigenvectors, leaving out the null space; nonzero where there are none. */
static int invert_by_eigenvectors(wf_least_squares *s, int p, double *vectors, double *values,
                                  const double *scale, double *work, int lwork, int *integers,
                                  int liwork)
{
    int info, n_null = 0;
    WF_BLAS(dsyevd_)
    ("V", "U", &p, vectors, &p, values, work, &lwork, integers, &liwork, &info, 1, 1);
    if (info != 0) {
        return info;
    }
    const double least = fmax(values[p - 1], 0) * 16 * p * DBL_EPSILON;
    while (n_null < p && !(values[n_null] > least)) { /* in rising order */
        n_null++;
    }
    const int kept = p - n_null;
    double *column = vectors + (ptrdiff_t)n_null * p;
    for (ptrdiff_t t = n_null; t < p; t++) {
        for (int k = 0; k < p; k++) {
            vectors[t * p + k] *= scale[k] / sqrt(values[t]);
        }
    }
    const double one = 1, zero = 0;
    if (kept) {
        WF_BLAS(dsyrk_)("L", "N", &p, &kept, &one, column, &p, &zero, s->inverse, &p, 1, 1);
    }
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = k + 1; l < p; l++) {
            s->inverse[l * p + k] = s->inverse[k * p + l];
        }
    }
    return span_null(s, p, vectors, n_null, scale, values, work, lwork);
}

static void scaled_gram(const wf_fit *fit, const double *scale, double *matrix)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = 0; l < p; l++) {
            const double ridge = k == l ? fit->options.alpha : 0;
            matrix[k * p + l] = (s->gram[k * p + l] + ridge) * scale[k] * scale[l];
        }
    }
}

/* The inverse of gram + alpha I, scaled to unit diagonal meanwhile. */
static wf_status invert(wf_fit *fit)
{
    wf_least_squares *s = fit->solver;
    const int p = (int)fit->options.p;
    const ptrdiff_t square = fit->options.p * fit->options.p;
    const ptrdiff_t lwork = 1 + 6 * fit->options.p + 2 * square + 64 * fit->options.p;
    const ptrdiff_t liwork = 3 + 5 * fit->options.p;
    if (lwork > INT_MAX) { /* more than LAPACK's counts can name */
        return WF_NO_MEMORY;
    }
    double *matrix = malloc((size_t)(square + 2 * p + lwork) * sizeof *matrix);
    int *integers = malloc((size_t)liwork * sizeof *integers);
    wf_status status = WF_NO_MEMORY;
    if (!matrix || !integers) {
        goto done;
    }
    double *values = matrix + square, *scale = values + p, *work = scale + p;
    for (ptrdiff_t k = 0; k < p; k++) {
        const double size = s->gram[k * p + k] + fit->options.alpha;
        scale[k] = size > 0 ? 1 / sqrt(size) : 0;
    }
    s->n_null = 0;
    scaled_gram(fit, scale, matrix);
    if (invert_by_cholesky(s, p, matrix, scale, work, integers) != 0) {
        memset(s->inverse, 0, (size_t)square * sizeof *s->inverse);
        scaled_gram(fit, scale, matrix);
        if (wf_k->nonfinite(square, matrix) ||
            invert_by_eigenvectors(s, p, matrix, values, scale, work, (int)lwork, integers,
                                   (int)liwork) != 0) {
            s->n_null = 0;
            for (ptrdiff_t i = 0; i < square; i++) {
                s->inverse[i] = NAN; /* which measure() takes for what it is */
            }
        }
    }
    fit->info.rank = p - s->n_null;
    status = WF_OK;
done:
    free(matrix);
    free(integers);
    return status;
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
            above +=
                g[k] * wf_k->dot(p, s->inverse + k * p, g); /* F - F* = g'H^-1 g for a quadratic */
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

static void set_intercept(wf_fit *fit)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    for (ptrdiff_t j = 0; j < fit->options.m && fit->options.fit_intercept; j++) {
        double value = s->mean[p + j] + s->shift[p + j];
        for (ptrdiff_t k = 0; k < p; k++) {
            value -= fit->coef[j * p + k] * (s->mean[k] + s->shift[k]);
        }
        fit->intercept[j] = value;
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
    for (ptrdiff_t j = 0; j < fit->options.m;
         j++) { /* the intercept follows the coefficients' change */
        double *coef = fit->coef + j * p, change = 0;
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

static wf_status least_squares_advance(wf_fit *fit, int (*interrupt)(void *), void *context)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t p = fit->options.p, m = fit->options.m;
    if (interrupt && interrupt(context)) {
        return WF_INTERRUPTED;
    }
    if (s->rows) {
        double total, above, size;
        const wf_status solved = wf_least_squares_solve_rows(fit, &total, &above, &size);
        if (solved == WF_OK) {
            conclude(fit, total, above, size);
        }
        return solved;
    }
    double *gradient = malloc((size_t)(m * p + m) * sizeof *gradient);
    if (!gradient) {
        return WF_NO_MEMORY;
    }
    double *rss = gradient + m * p;
    const double *total = join_lanes(s, p);
    wf_status status = WF_OK;
    double unresolved = 0;
    if (!s->refining) {
        first_solution(fit, total);
        status = invert(fit);
        if (status != WF_OK) {
            goto done;
        }
        step(fit, s->cross);
        set_intercept(fit);
        for (ptrdiff_t j = 0; j < m; j++) {
            rss[j] = s->square[j];
            for (ptrdiff_t k = 0; k < p; k++) {
                const double *coef = fit->coef + j * p;
                const double fitted = wf_k->dot(p, s->gram + k * p, coef);
                gradient[j * p + k] = s->cross[j * p + k] - fitted - fit->options.alpha * coef[k];
                rss[j] += coef[k] * (fitted - 2 * s->cross[j * p + k]);
            }
            unresolved = fmax(unresolved, s->square[j] > 0 ? 1 - fabs(rss[j]) / s->square[j] : 0);
        }
        if (unresolved >
            1 - 1e-6) { /* differences of near equals: look at the residuals themselves */
            memset(s->lane, 0, (size_t)(s->lanes * s->width) * sizeof *s->lane);
            s->refining = 1;
            goto done;
        }
    } else {
        exact_gradient(fit, total, rss, gradient);
    }
    measure(fit, rss, gradient);
    if (s->refining && !fit->info.converged && fit->info.n_passes < MOST_PASSES) {
        newton_step(fit, gradient);
        memset(s->lane, 0, (size_t)(s->lanes * s->width) * sizeof *s->lane);
        fit->needs_pass = 1;
    }
done:
    free(gradient);
    return status;
}

const wf_method wf_least_squares_method = {
    .new = least_squares_new,
    .free = least_squares_free,
    .accumulate = least_squares_accumulate,
    .advance = least_squares_advance,
    .state = wf_least_squares_state,
    .export = wf_least_squares_export,
    .absorb = wf_least_squares_absorb,
};
