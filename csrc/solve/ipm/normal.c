/* Products with the rows, their Gram matrix, and the normal equations' factor (Cholesky). */
#include "solve/ipm/normal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"

enum { SMALL_Q = 12 }; /* up to here Gram matrices by dot products: BLAS would pack more than add */

/* -- kinds of rows -- */

void wf_ipm_unknowns(const wf_ipm_state *s, int kind, const double *z, double *v)
{
    assert(kind >= 0 && kind <= WF_IPM_DIFFERENCE);
    const int two = s->problem->parts == 2;
    for (int k = 0; k < s->q; k++) {
        v[k] = (kind != WF_IPM_DIFFERENCE ? z[k] : 0) + (two && kind != 1 ? z[s->q + k] : 0);
    }
}

void wf_ipm_scatter(const wf_ipm_state *s, int kind, const double *v, double *z)
{
    assert(kind == 0 || s->problem->parts == 2);
    const int two = s->problem->parts == 2;
    for (int k = 0; k < s->q; k++) {
        if (kind != WF_IPM_DIFFERENCE) {
            z[k] += v[k];
        }
        if (two && kind != 1) {
            z[s->q + k] += v[k];
        }
    }
}

void wf_ipm_scatter_gram(wf_ipm_state *s, int kind, const double *gram)
{
    assert(kind == 0 || s->problem->parts == 2);
    const int q = s->q, Q = s->Q;
    for (int k = 0; k < q; k++) {
        for (int l = 0; l < q; l++) {
            const double value = l <= k ? gram[l * q + k] : gram[k * q + l];
            if (kind != WF_IPM_DIFFERENCE) {
                s->M[l * Q + k] += value;
            }
            if (Q > q && kind != 1) {
                s->M[(q + l) * Q + q + k] += value;
            }
            if (Q > q && kind == 0) {
                s->M[l * Q + q + k] += value;
                s->M[(q + l) * Q + k] += value;
            }
        }
    }
}

/* -- products with the rows -- */

void wf_ipm_times(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                  const double *v, double *t)
{
    assert(i0 >= 0 && n >= 0 && i0 + n <= b->n);
    memset(t, 0, (size_t)n * sizeof *t);
    for (int k = 0; k < s->q; k++) {
        wf_k->axpy(n, v[k], b->x + k * b->n + i0, t);
    }
}

void wf_ipm_times_t(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                    const double *e, double *out)
{
    assert(i0 >= 0 && n >= 0 && i0 + n <= b->n);
    for (int k = 0; k < s->q; k++) {
        out[k] += wf_k->dot(n, b->x + k * b->n + i0, e);
    }
}

ptrdiff_t wf_ipm_chunks(ptrdiff_t q)
{
    return q > SMALL_Q ? q : 1;
}

void wf_ipm_add_gram(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                     const double *w, double *products, double *gram)
{
    assert(i0 >= 0 && n <= WF_IPM_CHUNK && i0 + n <= b->n);
    const int q = s->q;
    if (q <= SMALL_Q) {
        for (int k = 0; k < q; k++) {
            const double *column = b->x + k * b->n + i0;
            for (ptrdiff_t i = 0; i < n; i++) {
                products[i] = w[i] * column[i];
            }
            for (int l = 0; l <= k; l++) {
                gram[l * q + k] += wf_k->dot(n, products, b->x + l * b->n + i0);
            }
        }
        return;
    }
    for (int k = 0; k < q; k++) {
        const double *column = b->x + k * b->n + i0;
        for (ptrdiff_t i = 0; i < n; i++) {
            products[k * n + i] = sqrt(w[i]) * column[i];
        }
    }
    const int rows = (int)n;
    const double one = 1;
    WF_BLAS(dsyrk_)("L", "T", &q, &rows, &one, products, &rows, &one, gram, &q, 1, 1);
}

/* -- the normal equations -- */

/* Where rounding has left M without a factor, the diagonal grows: from 1e-15, what rounding itself
 * does to it, tenfold at a time, which 40 attempts take beyond any matrix of numbers. Each entry
 * grows relative to its own size first, as directions may differ by many orders, and 1e-300 is for
 * those of size 0. */
void wf_ipm_factor(wf_ipm_state *s)
{
    const int Q = s->Q;
    double largest = 0;
    for (int k = 0; k < Q; k++) {
        largest = fmax(largest, s->M[k * Q + k]);
    }
    largest = largest > 0 ? largest : 1;
    double shift = 0;
    for (int attempt = 0; attempt < 40; attempt++) {
        memcpy(s->factor, s->M, (size_t)(Q * Q) * sizeof *s->M);
        for (int k = 0; k < Q; k++) {
            s->factor[k * Q + k] += shift * (s->M[k * Q + k] + 1e-3 * shift * largest) + 1e-300;
        }
        int info;
        WF_BLAS(dpotrf_)("L", &Q, s->factor, &Q, &info, 1);
        if (info == 0) {
            return;
        }
        shift = shift == 0 ? 1e-15 : shift * 10;
    }
    /* M is not finite: a step of practically zero ends the iterations. */
    memset(s->factor, 0, (size_t)(Q * Q) * sizeof *s->factor);
    for (int k = 0; k < Q; k++) {
        s->factor[k * Q + k] = 1e150;
    }
}

void wf_ipm_backsolve(const wf_ipm_state *s, double *rhs)
{
    const int one = 1;
    int info;
    WF_BLAS(dpotrs_)("L", &s->Q, &one, s->factor, &s->Q, rhs, &s->Q, &info, 1);
}
