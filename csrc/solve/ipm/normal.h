/* Products with the rows, their Gram matrix, and the normal equations' factor. */
#ifndef WF_SOLVE_IPM_NORMAL_H
#define WF_SOLVE_IPM_NORMAL_H

#include "solve/ipm/state.h"

/* v = E_kind z: the q unknowns that a kind of rows multiplies. */
void wf_ipm_unknowns(const wf_ipm_state *s, int kind, const double *z, double *v);
/* z += E_kind' v. */
void wf_ipm_scatter(const wf_ipm_state *s, int kind, const double *v, double *z);
/* M += E_kind' gram E_kind, gram q x q (lower). */
void wf_ipm_scatter_gram(wf_ipm_state *s, int kind, const double *gram);

/* t_i = x_i'v for rows [i0, i0 + n) of a block. */
void wf_ipm_times(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                  const double *v, double *t);
/* out_k += sum_i x_ik e_i for rows [i0, i0 + n) of a block. */
void wf_ipm_times_t(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                    const double *e, double *out);
/* gram (q x q, lower) += X' diag(w) X over a chunk; `products` holds wf_ipm_chunks(q) of them. */
void wf_ipm_add_gram(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                     const double *w, double *products, double *gram);
ptrdiff_t wf_ipm_chunks(ptrdiff_t q);

/* Factors M, which stays, into `factor`; with a little added to the diagonal where it must be. */
void wf_ipm_factor(wf_ipm_state *s);
/* Solves with the factor, in place. */
void wf_ipm_backsolve(const wf_ipm_state *s, double *rhs);

#endif
