/* squared_error with fewer rows than unknowns: the rows themselves are less than their Gram matrix.
 *
 * With X (n x p) and Y (n x m) the centred rows and K = X X' = U diag(l) U', the solution of least
 * norm lies in the span of the rows,
 *
 *   A = X'D,  (K + alpha I) D = Y  on the eigenvectors with l + alpha beyond rounding,
 *
 * and is refined against the residuals R = Y - X A of the rows: E = R - alpha D is what is missed.
 * Since X'E is (half) the negative gradient of F, a quadratic with the matrix X'X + alpha I,
 *
 *   N m (F - F*) = tr(E'X (X'X + alpha I)^-1 X'E) = sum_tj l_t / (l_t + alpha) (U'E)_tj^2.
 *
 * Source: the dual form of ridge regression, Saunders, Gammerman and Vovk, "Ridge Regression
 * Learning Algorithm in Dual Variables", ICML 1998. */
#include "solve/least_squares/rows.h"

#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/least_squares/state.h"

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

/* Eigenvectors (over `matrix`) and eigenvalues of X X'; 0, or nonzero where there are none to be
 * had. */
static int decompose(const wf_fit *fit, double *matrix, double *values, double *work, int lwork,
                     int *integers, int liwork)
{
    const int n = (int)fit->options.n_rows, p = (int)fit->options.p;
    const wf_least_squares *s = fit->solver;
    const double one = 1, zero = 0;
    int info;
    WF_BLAS(dsyrk_)
    ("U", "N", &n, &p, &one, s->rows, &n, &zero, matrix, &n, 1, 1);
    for (ptrdiff_t i = 0; i < n; i++) {
        if (wf_k->nonfinite(i + 1, matrix + i * n)) {
            return 1;
        }
    }
    WF_BLAS(dsyevd_)
    ("V", "U", &n, matrix, &n, values, work, &lwork, integers, &liwork, &info, 1, 1);
    return info;
}

/* From D to A and to the residuals R. */
static void evaluate(wf_fit *fit, const double *dual, double *residual)
{
    const int n = (int)fit->options.n_rows, p = (int)fit->options.p, m = (int)fit->options.m;
    const wf_least_squares *s = fit->solver;
    const double *x = s->rows, *y = x + (ptrdiff_t)p * n;
    const double one = 1, zero = 0, minus = -1;
    WF_BLAS(dgemm_)
    ("T", "N", &p, &m, &n, &one, x, &n, dual, &n, &zero, fit->coef, &p, 1, 1);
    memcpy(residual, y, (size_t)n * (size_t)m * sizeof *residual);
    WF_BLAS(dgemm_)
    ("N", "N", &n, &m, &p, &minus, x, &n, fit->coef, &p, &one, residual, &n, 1, 1);
}

/* Steps on D until what is missed falls no further; returns N m (F - F*). `first` is the first
 * eigenvalue in use. */
static double refine(wf_fit *fit, const double *vectors, const double *values, ptrdiff_t first,
                     double *dual, double *residual, double *missed, double *along)
{
    enum { MOST_ROUNDS = 6 };
    const int n = (int)fit->options.n_rows, m = (int)fit->options.m, kept = n - (int)first;
    const double one = 1, zero = 0, alpha = fit->options.alpha;
    const double *basis = vectors + first * n;
    double last = INFINITY;
    for (int round = 0;; round++) {
        evaluate(fit, dual, residual);
        for (ptrdiff_t i = 0; i < (ptrdiff_t)n * m; i++) {
            missed[i] = residual[i] - alpha * dual[i];
        }
        if (kept == 0) {
            return 0;
        }
        WF_BLAS(dgemm_)
        ("T", "N", &kept, &m, &n, &one, basis, &n, missed, &n, &zero, along, &kept, 1, 1);
        double above = 0;
        for (ptrdiff_t j = 0; j < m; j++) {
            for (ptrdiff_t t = 0; t < kept; t++) {
                double *step = along + j * kept + t;
                const double value = fmax(values[first + t], 0);
                above += value / (value + alpha) * *step * *step;
                *step /= value + alpha;
            }
        }
        if (round == MOST_ROUNDS || !(above < 0.25 * last)) {
            return above;
        }
        last = above;
        WF_BLAS(dgemm_)
        ("N", "N", &n, &m, &kept, &one, basis, &n, along, &kept, &one, dual, &n, 1, 1);
    }
}

/* The intercept, F times N m, and the targets' sum of squares, which its rounding is measured by.
 */
static void conclude(wf_fit *fit, const double *residual, double *total, double *size)
{
    const wf_least_squares *s = fit->solver;
    const ptrdiff_t n = fit->options.n_rows, p = fit->options.p, m = fit->options.m;
    for (ptrdiff_t j = 0; j < m; j++) {
        const double *y = s->rows + (p + j) * n, *r = residual + j * n, *coef = fit->coef + j * p;
        const double mean = s->shift[p + j] + s->mean[p + j];
        if (fit->options.fit_intercept) {
            fit->intercept[j] = mean;
            for (ptrdiff_t k = 0; k < p; k++) {
                fit->intercept[j] -= coef[k] * (s->shift[k] + s->mean[k]);
            }
        }
        *total += wf_k->dot(n, r, r) + fit->options.alpha * wf_k->dot(p, coef, coef);
        *size += wf_k->dot(n, y, y) + (double)n * mean * mean;
    }
}

wf_status wf_least_squares_solve_rows(wf_fit *fit, double *total, double *above, double *size)
{
    const ptrdiff_t n = fit->options.n_rows, p = fit->options.p, m = fit->options.m;
    const ptrdiff_t lwork = 1 + 6 * n + 2 * n * n, liwork = 3 + 5 * n;
    if (lwork > INT_MAX) { /* more than LAPACK's counts can name */
        return WF_NO_MEMORY;
    }
    double *dual = calloc((size_t)(4 * n * m + n * n + n + lwork), sizeof *dual);
    int *integers = malloc((size_t)liwork * sizeof *integers);
    wf_status status = WF_NO_MEMORY;
    if (!dual || !integers) {
        goto done;
    }
    double *residual = dual + n * m, *missed = residual + n * m, *along = missed + n * m;
    double *vectors = along + n * m, *values = vectors + n * n, *work = values + n;
    status = WF_OK;
    *total = *size = 0;
    centre(fit);
    if (decompose(fit, vectors, values, work, (int)lwork, integers, (int)liwork) != 0) {
        *above = NAN;
        goto done;
    }
    /* the p - n eigenvalues of X'X + alpha I that K has not are alpha */
    const double alpha = fit->options.alpha;
    const double least = (fmax(values[n - 1], 0) + alpha) * 16 * (double)p * DBL_EPSILON;
    ptrdiff_t first = 0;
    while (first < n && !(values[first] + alpha > least)) {
        first++;
    }
    fit->info.rank = n - first + (alpha > least ? p - n : 0);
    *above = refine(fit, vectors, values, first, dual, residual, missed, along);
    conclude(fit, residual, total, size);
done:
    free(dual);
    free(integers);
    return status;
}
