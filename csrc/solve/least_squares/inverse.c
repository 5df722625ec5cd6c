/* The (pseudo-)inverse of the Gram matrix, which is scaled to a unit diagonal meanwhile.
 *
 * By Cholesky where the rank is full beyond doubt, else by eigenvectors, without those of the null
 * space. (J. J. M. Cuppen, A Divide and Conquer Method for the Symmetric Tridiagonal Eigenproblem,
 * 1981, doi:10.1007/BF01396757, is LAPACK's dsyevd.) */
#include "solve/least_squares/inverse.h"

#include <assert.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/least_squares/state.h"

/* Reciprocal condition above which the rank is full: ten thousand million roundings. */
static const double FULL_RANK = 1e-6;
/* An eigenvalue below this times p of the largest is rounding: a Gram matrix of unit columns is
 * known to a few epsilons in each entry, and its eigenvalues to p times as much. */
static const double ROUNDING = 16 * DBL_EPSILON;

/* Into `inverse`, whose scaled matrix has full rank beyond doubt: 0, else nonzero. `matrix` (p x p)
 * is overwritten. */
static int invert_by_cholesky(wf_least_squares *s, int p, double *matrix, const double *scale,
                              double *work, int *integers)
{
    double norm = 0, rcond;
    int info;
    for (int k = 0; k < p; k++) {
        norm = fmax(norm, wf_k->sum_abs(p, matrix + (ptrdiff_t)k * p));
    }
    WF_BLAS(dpotrf_)("L", &p, matrix, &p, &info, 1);
    if (info != 0) {
        return info;
    }
    WF_BLAS(dpocon_)("L", &p, matrix, &p, &norm, &rcond, work, integers, &info, 1);
    if (info != 0 || !(rcond > FULL_RANK)) {
        return 1;
    }
    WF_BLAS(dpotri_)("L", &p, matrix, &p, &info, 1);
    for (ptrdiff_t k = 0; k < p; k++) {
        for (ptrdiff_t l = k; l < p; l++) {
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

/* The same by the eigenvectors, leaving out the null space; nonzero where there are none. */
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
    const double least = fmax(values[p - 1], 0) * ROUNDING * p;
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

wf_status wf_least_squares_invert(wf_fit *fit)
{
    wf_least_squares *s = fit->solver;
    assert(s->gram && s->inverse && fit->options.p <= INT_MAX);
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
                s->inverse[i] = NAN; /* which measure() in least_squares.c takes for what it is */
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
