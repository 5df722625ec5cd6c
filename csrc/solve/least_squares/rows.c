/* squared_error with fewer rows than unknowns: the rows themselves are less than their Gram matrix.
 *
 * X (n x p, n <= p) and Y (n x m) are the centred rows, C the sizes of X's columns (or, with a
 * ridge, whose units are the columns' own, 1), and X C^-1 = U S W' its singular value
 * decomposition, without the directions that rounding cannot tell from zero. Then
 *
 *   A = P C^-1 W c,   (S^2 + alpha) c = S U'Y,
 *
 * with P the projector on the span of C W, which are the rows of X: the solution of least norm.
 * Refined against the residuals R = Y - X A of the rows: h = S U'R - alpha c is (half) the negative
 * gradient of F, a quadratic, so that
 *
 *   c += h / (S^2 + alpha),   N m (F - F*) = sum_tj h_tj^2 / (s_t^2 + alpha).
 *
 * Source: G. Golub, W. Kahan, "Calculating the Singular Values and Pseudo-Inverse of a Matrix",
 * 1965, doi:10.1137/0702016. */
#include "solve/least_squares/rows.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/least_squares/intercept.h"
#include "solve/least_squares/state.h"

static double *rows_of(const wf_fit *fit)
{
    const wf_least_squares *s = fit->solver;
    return s->rows;
}

/* Columns less their first value, which leaves a constant column exactly zero, then less their
 * mean. What was taken off goes into `shift` and `mean`. */
static void centre(wf_fit *fit)
{
    wf_least_squares *s = fit->solver;
    const ptrdiff_t n = fit->options.n_rows, columns = fit->options.p + fit->options.m;
    for (ptrdiff_t c = 0; c < columns && fit->options.fit_intercept; c++) {
        double *x = s->rows + c * n;
        s->shift[c] = x[0];
        for (ptrdiff_t i = 0; i < n; i++) {
            x[i] -= s->shift[c];
        }
        s->mean[c] = wf_k->sum(n, x) / (double)n;
        for (ptrdiff_t i = 0; i < n; i++) {
            x[i] -= s->mean[c];
        }
    }
}

/* What the solution is made from. */
typedef struct {
    double *size;   /* p: C */
    double *U;      /* n x n */
    double *s;      /* n: singular values, falling */
    double *Wt;     /* n x p: W' */
    double *Q;      /* p x kept: orthonormal, the rows' span; not with a ridge */
    double *c, *h;  /* kept x m */
    double *R;      /* n x m */
    double *scaled; /* n x p: X C^-1 */
    int n, p, m, kept;
} decomposition;

/* 0, or nonzero where products leave the range of float64. */
static int scale_columns(const wf_fit *fit, decomposition *d)
{
    const double *x = rows_of(fit);
    for (ptrdiff_t k = 0; k < d->p; k++) {
        const double square = wf_k->dot(d->n, x + k * d->n, x + k * d->n);
        if (!isfinite(square)) {
            return 1;
        }
        d->size[k] = fit->options.alpha > 0 || square == 0 ? 1 : sqrt(square);
        for (ptrdiff_t i = 0; i < d->n; i++) {
            d->scaled[k * d->n + i] = x[k * d->n + i] / d->size[k];
        }
    }
    return 0;
}

/* How many directions are kept, and the rank. A singular value is known to p epsilons of the
 * largest; what is below that is rounding. (A Gram matrix, whose eigenvalues are their squares,
 * tells less: inverse.c.) */
static int count_kept(wf_fit *fit, const decomposition *d)
{
    const double alpha = fit->options.alpha, largest = hypot(d->s[0], sqrt(alpha));
    const double least = (double)d->p * DBL_EPSILON * largest;
    int kept = 0;
    while (kept < d->n && hypot(d->s[kept], sqrt(alpha)) > least) {
        kept++;
    }
    /* the p - n directions that no row has are left to the ridge */
    fit->info.rank = kept + (sqrt(alpha) > least ? d->p - d->n : 0);
    return kept;
}

/* An orthonormal basis of the kept rows in the columns' own scale. */
static int span_rows(decomposition *d, double *work, int lwork)
{
    for (ptrdiff_t t = 0; t < d->kept; t++) {
        for (ptrdiff_t k = 0; k < d->p; k++) {
            d->Q[t * d->p + k] = d->Wt[k * d->n + t] * d->size[k];
        }
    }
    double *tau = d->scaled; /* free by now */
    int info = 0;
    if (d->kept) {
        WF_BLAS(dgeqrf_)(&d->p, &d->kept, d->Q, &d->p, tau, work, &lwork, &info);
        WF_BLAS(dorgqr_)(&d->p, &d->kept, &d->kept, d->Q, &d->p, tau, work, &lwork, &info);
    }
    return info;
}

/* From c to A and to the residuals R. */
static void evaluate(wf_fit *fit, const decomposition *d)
{
    const double *x = rows_of(fit), *y = x + (ptrdiff_t)d->p * d->n;
    const double one = 1, zero = 0, minus = -1;
    const int n = d->n, p = d->p, m = d->m, kept = d->kept;
    WF_BLAS(dgemm_)
    ("T", "N", &p, &m, &kept, &one, d->Wt, &n, d->c, &kept, &zero, fit->coef, &p, 1, 1);
    for (ptrdiff_t j = 0; j < m; j++) {
        for (ptrdiff_t k = 0; k < p; k++) {
            fit->coef[j * p + k] /= d->size[k];
        }
    }
    if (d->Q) {
        WF_BLAS(dgemm_)
        ("T", "N", &kept, &m, &p, &one, d->Q, &p, fit->coef, &p, &zero, d->h, &kept, 1, 1);
        WF_BLAS(dgemm_)
        ("N", "N", &p, &m, &kept, &one, d->Q, &p, d->h, &kept, &zero, fit->coef, &p, 1, 1);
    }
    memcpy(d->R, y, (size_t)n * (size_t)m * sizeof *d->R);
    WF_BLAS(dgemm_)
    ("N", "N", &n, &m, &p, &minus, x, &n, fit->coef, &p, &one, d->R, &n, 1, 1);
}

/* Steps on c until the gap falls no further; returns it, N m (F - F*). */
static double refine(wf_fit *fit, decomposition *d)
{
    enum { MOST_ROUNDS = 6 };
    const double one = 1, zero = 0, alpha = fit->options.alpha;
    if (d->kept == 0) {
        memcpy(d->R, rows_of(fit) + (ptrdiff_t)d->p * d->n,
               (size_t)d->n * (size_t)d->m * sizeof *d->R);
        return 0;
    }
    double last = INFINITY;
    for (int round = 0;; round++) {
        evaluate(fit, d);
        WF_BLAS(dgemm_)
        ("T", "N", &d->kept, &d->m, &d->n, &one, d->U, &d->n, d->R, &d->n, &zero, d->h, &d->kept, 1,
         1);
        double above = 0;
        for (ptrdiff_t j = 0; j < d->m; j++) {
            for (ptrdiff_t t = 0; t < d->kept; t++) {
                const ptrdiff_t at = j * d->kept + t;
                const double s = d->s[t], root = hypot(s, sqrt(alpha));
                d->h[at] = s / root * d->h[at] - alpha / root * d->c[at]; /* h / root, in range */
                above += d->h[at] * d->h[at];
                d->h[at] /= root;
            }
        }
        if (round == MOST_ROUNDS || !(above < 0.25 * last)) {
            return above;
        }
        last = above;
        wf_k->axpy((ptrdiff_t)d->kept * d->m, 1, d->h, d->c);
    }
}

/* F times N m, and what its rounding is measured by: the targets' squares, and the squares of
 * |x||a|, an epsilon of which residuals are off by. */
static void conclude(wf_fit *fit, const double *residual, double *total, double *size)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t n = fit->options.n_rows, p = fit->options.p, m = fit->options.m;
    double inputs = 0;
    for (ptrdiff_t k = 0; k < p; k++) {
        inputs += wf_k->dot(n, s->rows + k * n, s->rows + k * n);
    }
    for (ptrdiff_t j = 0; j < m; j++) {
        const double *y = s->rows + (p + j) * n, *r = residual + j * n, *coef = fit->coef + j * p;
        const double mean = s->shift[p + j] + s->mean[p + j];
        const double norm = wf_k->dot(p, coef, coef);
        *total += wf_k->dot(n, r, r) + fit->options.alpha * norm;
        *size += wf_k->dot(n, y, y) + (double)n * mean * mean + DBL_EPSILON * inputs * norm;
    }
}

/* The decomposition, and the solution from it; NaN where there is none to be had. */
static double solve(wf_fit *fit, decomposition *d, double *work, int lwork, int *integers)
{
    const int n = d->n, p = d->p;
    int info;
    if (scale_columns(fit, d) != 0) {
        return NAN;
    }
    WF_BLAS(dgesdd_)
    ("S", &n, &p, d->scaled, &n, d->s, d->U, &n, d->Wt, &n, work, &lwork, integers, &info, 1);
    if (info != 0) {
        return NAN;
    }
    d->kept = count_kept(fit, d);
    if (d->Q && span_rows(d, work, lwork) != 0) {
        return NAN;
    }
    return refine(fit, d);
}

wf_status wf_least_squares_solve_rows(wf_fit *fit, double *total, double *above, double *size)
{
    const ptrdiff_t n = fit->options.n_rows, p = fit->options.p, m = fit->options.m;
    decomposition d = {.n = (int)n, .p = (int)p, .m = (int)m};
    double best, *work = NULL;
    int info, lwork = -1, *integers = malloc((size_t)(8 * n) * sizeof *integers);
    WF_BLAS(dgesdd_)
    ("S", &d.n, &d.p, NULL, &d.n, NULL, NULL, &d.n, NULL, &d.n, &best, &lwork, NULL, &info, 1);
    wf_status status = WF_NO_MEMORY;
    if (!integers || !(best < INT_MAX)) { /* more than LAPACK's counts can name */
        goto done;
    }
    lwork = (int)best;
    d.size = calloc((size_t)(p + n + n * n + 3 * n * p + 3 * n * m + lwork), sizeof *d.size);
    if (!d.size) {
        goto done;
    }
    d.s = d.size + p;
    d.U = d.s + n;
    d.Wt = d.U + n * n;
    d.scaled = d.Wt + n * p;
    d.Q = fit->options.alpha > 0 ? NULL : d.scaled + n * p;
    d.c = d.scaled + 2 * n * p;
    d.h = d.c + n * m;
    d.R = d.h + n * m;
    work = d.R + n * m;
    status = WF_OK;
    *total = *size = 0;
    centre(fit);
    *above = solve(fit, &d, work, lwork, integers);
    wf_least_squares_set_intercept(fit);
    conclude(fit, d.R, total, size);
done:
    free(d.size);
    free(integers);
    return status;
}
