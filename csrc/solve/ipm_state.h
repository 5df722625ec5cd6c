/* What the iterations (ipm.c) and the end (ipm_finish.c) of the interior point method share. */
#ifndef WF_SOLVE_IPM_STATE_H
#define WF_SOLVE_IPM_STATE_H

#include "kernels/kernels.h"
#include "solve/ipm.h"

enum { WF_IPM_SMALL_Q = 12 }; /* up to here Gram matrices by dot products, beyond by BLAS */

/* One kind of rows. Primal: rp - rm = x'v - y with rp, rm >= 0. Multiplier a in [-lambda, lambda],
 * lambda = 1 but for the difference rows, kept as sp = lambda - a and sm = lambda + a, which pair
 * with rp and rm. */
typedef struct {
    int kind; /* part 0, part 1, or 2: the difference of both */
    ptrdiff_t n;
    const double *x;
    const int32_t *group;
    double *y; /* scaled copy */
    wf_ipm_rows rows;
} wf_block;

/* One hinge each: t >= 0 its excess, sigma >= 0 its slack, lambda in [0, eta] its multiplier. */
typedef struct {
    ptrdiff_t n;
    double *c;             /* scaled copy */
    double *lambda, *rest; /* rest = eta - lambda */
    double *t, *sigma;
    double *dlambda, *dt, *dsigma;
    double *ct, *csigma;
    double *omega, *phi, *pi, *total; /* total: sum of rp + rm of its rows */
    double *u;                        /* n x q */
} wf_hinges;

/* A row or a hinge that may hold with equality at the optimum: the more room its multiplier has on
 * both sides, the likelier. */
typedef struct {
    double room;
    int block; /* -1: a hinge */
    ptrdiff_t index;
} wf_candidate;

typedef struct {
    const wf_ipm *problem;
    int q, Q; /* Q = parts * q */
    int n_blocks;
    wf_block block[3];
    wf_hinges hinge;
    double scale; /* residuals are held divided by this */
    double constant, noise;
    double pairs; /* sum of the weights of all complementary pairs */
    double bound; /* best so far, without the constant */
    double *z, *dz, *g, *zeta, *rhs;
    double *M, *factor;
    double *uhat;            /* n_groups x q */
    wf_candidate *basis_row; /* Q equations that determine the vertex, or NULL */
    double *basis;           /* Q x Q, column-major: the equations, each divided by its size */
    double *basis_size;      /* Q */
    double *arena;
} wf_ipm_state;

/* v = the q unknowns that a kind of rows multiplies. */
void wf_ipm_unknowns(const wf_ipm_state *s, int kind, const double *z, double *v);
/* Adds sign-correctly a q-vector of a kind of rows to one over all unknowns. */
void wf_ipm_scatter(const wf_ipm_state *s, int kind, const double *v, double *z);
/* t_i = x_i'v for rows [i0, i0 + n) of a block. */
void wf_ipm_times(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                  const double *v, double *t);
/* out_k += sum_i x_ik e_i for rows [i0, i0 + n) of a block. */
void wf_ipm_times_t(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                    const double *e, double *out);
/* gram (q x q, lower) += X' diag(w) X over a chunk; room holds max(1, q beyond small) chunks. */
void wf_ipm_add_gram(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                     const double *w, double *room, double *gram);
/* M += the q x q (lower) matrix of one kind of rows. */
void wf_ipm_scatter_gram(wf_ipm_state *s, int kind, const double *gram);
/* All arrays of the state, in one arena that the caller frees, and the scratch of the rest. */
wf_status wf_ipm_allocate(wf_ipm_state *s, double **room);
/* The scale and the first point. */
void wf_ipm_start(wf_ipm_state *s, double *room);
/* Solves with the factored normal matrix, in place. */
void wf_ipm_backsolve(const wf_ipm_state *s, double *rhs);
/* Factor M (kept) into factor. */
void wf_ipm_factor(wf_ipm_state *s);

/* F at z (scaled units, without the constant), from the rows alone. */
double wf_ipm_primal(const wf_ipm_state *s, const double *z);
/* A lower bound on min F (scaled units, without the constant) from the multipliers of the current
 * point, made to balance by way of its factored matrix. `primal` is F at z. Uses the arrays of the
 * step. */
double wf_ipm_bound(wf_ipm_state *s, double primal);
/* Replaces z by the vertex that the multipliers name, where that is no worse. WF_NO_MEMORY or
 * WF_OK. */
wf_status wf_ipm_polish(wf_ipm_state *s);

#endif
