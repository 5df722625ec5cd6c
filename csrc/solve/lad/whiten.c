/* Whitening, from a rank-revealing QR factorisation.
 *
 * Columns [x, 1] of the sample are scaled to unit norm, D, and factored with pivots, A D P = Q R
 * (LAPACK's dgeqp3: Quintana-Orti, Sun and Bischof 1998, doi:10.1137/S1064827595296732). Columns on
 * whose diagonal R is zero to rounding depend on those before them and are left out. With the
 * others, L' = sqrt(n) D P R^-1, so that the whitened rows L [x, 1] have mean square 1 and are
 * uncorrelated. For a step b += L'z the residual of a row changes by u'z, which is at most
 * |u| |z|. */
#include "solve/lad/whiten.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/lad/unit.h"

/* Columns of unit norm, without overflow on the way; `size` is what they had. */
static void scale_columns(double *A, int rows, int q, double *size)
{
    for (int k = 0; k < q; k++) {
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
}

/* span, rank, L and null from R in the upper triangle of A, whose columns have pivots and sizes;
 * `inverse` (q x q) is for R^-1. */
static void read_factor(wf_fit *fit, const double *A, int rows, int q, const int *pivot,
                        const double *size, double n, double *inverse)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    /* What rounding leaves of a column of unit norm that depends on others: some units in the last
     * place for each row, at random. */
    const double least = 64 * DBL_EPSILON * sqrt((double)rows);
    int rank = 0;
    while (rank < q && fabs(A[(ptrdiff_t)rank * rows + rank]) > least) {
        rank++;
    }
    for (int k = 0; k < q; k++) {
        const int at = pivot[k] - 1;
        for (int l = 0; l < q; l++) {
            s->span[at * q + l] = l <= k ? A[(ptrdiff_t)k * rows + l] * size[at] : 0;
        }
    }
    for (int k = 0; k < rank; k++) {
        for (int l = 0; l < rank; l++) {
            inverse[k * rank + l] = l <= k ? A[(ptrdiff_t)k * rows + l] : 0;
        }
    }
    if (rank) {
        int info;
        WF_BLAS(dtrtri_)("U", "N", &rank, inverse, &rank, &info, 1, 1);
    }
    memset(s->L, 0, (size_t)((p + 1) * (p + 1)) * sizeof *s->L);
    for (int t = 0; t < rank; t++) { /* u = R^-T x: row t of L is column t of R^-1 */
        for (int k = 0; k <= t; k++) {
            const int at = pivot[k] - 1;
            s->L[t * (p + 1) + at] = inverse[t * rank + k] / size[at] * sqrt(n);
        }
    }
    memset(s->null, 0, (size_t)((p + 1) * (p + 1)) * sizeof *s->null);
    for (int d = rank; d < q; d++) { /* column d less R^-1 R_d of the independent ones */
        double *null = s->null + (d - rank) * (p + 1);
        null[pivot[d] - 1] = 1 / size[pivot[d] - 1];
        for (int k = 0; k < rank; k++) {
            double weight = 0;
            for (int l = k; l < rank; l++) {
                weight += inverse[l * rank + k] * A[(ptrdiff_t)d * rows + l];
            }
            null[pivot[k] - 1] = -weight / size[pivot[k] - 1];
        }
    }
    s->rank = rank;
    fit->info.rank = rank < p ? rank : p;
}

/* L, null, span and rank from a matrix A of [x, 1] rows (column-major, `rows` >= q of them;
 * overwritten): columns [x, 1] times L' have mean square 1 over n rows and are independent. A
 * column that depends on others to the last bits is left out and gets the coefficient 0. */
static wf_status whiten_matrix(wf_fit *fit, double *A, int rows, double n)
{
    const int q = (int)fit->options.p + (fit->options.fit_intercept ? 1 : 0);
    const int lwork = 128 * (q + 1); /* above dgeqp3's best, 2 q + (q + 1) nb for blocks of nb */
    assert(rows >= q && n > 0);
    wf_status status = WF_NO_MEMORY;
    double *work = malloc((size_t)(lwork + 2 * q + q * q) * sizeof *work);
    int *pivot = calloc((size_t)q, sizeof *pivot);
    if (!work || !pivot) {
        goto done;
    }
    status = WF_OK;
    double *tau = work + lwork, *size = tau + q, *inverse = size + q;
    int info;
    scale_columns(A, rows, q, size);
    WF_BLAS(dgeqp3_)(&rows, &q, A, &rows, pivot, tau, work, &lwork, &info);
    read_factor(fit, A, rows, q, pivot, size, n, inverse);
done:
    free(work);
    free(pivot);
    return status;
}

wf_status wf_whiten_sample(wf_fit *fit)
{
    wf_lad *s = fit->solver;
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

wf_status wf_whiten_strays(wf_fit *fit)
{
    wf_lad *s = fit->solver;
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

void wf_unwhiten(const wf_fit *fit, const double *z, double *b)
{
    const wf_lad *s = fit->solver;
    for (ptrdiff_t t = 0; t < s->rank; t++) {
        wf_k->axpy(fit->options.p + 1, z[t], s->L + t * (fit->options.p + 1), b);
    }
}
