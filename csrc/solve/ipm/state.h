/* What the steps of the interior point method share: the iterate, its directions, its scratch.
 *
 * Two parts are held as z = (z_1, z_0 - z_1): where the hinge presses the difference to zero, its
 * large weights then stay in a block of their own and drown nothing. With E_0 = [I I], E_1 = [I 0],
 * E_2 = [0 I] the rows of kind k multiply E_k z (wf_ipm_unknowns), and what they bring to sums over
 * unknowns enters by E_k' (wf_ipm_scatter). With one part, E_0 = I. */
#ifndef WF_SOLVE_IPM_STATE_H
#define WF_SOLVE_IPM_STATE_H

#include "kernels/kernels.h"
#include "solve/ipm/problem.h"

enum { WF_IPM_DIFFERENCE = 2 }; /* the kind of the hinges' rows; 0 and 1 are those of the parts */

/* One kind of rows. Primal: rp - rm = x'v - y with rp, rm >= 0. Multiplier a in [-lambda, lambda],
 * lambda = 1 but for the difference rows, kept as sp = lambda - a and sm = lambda + a, which pair
 * with rp and rm. */
typedef struct {
    int kind;
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
    double *ct, *csigma; /* second-order corrections of the two products */
    double *omega, *phi; /* see newton.c */
    double *pi;          /* what the hinge's equation misses */
    double *total;       /* sum of rp + rm of its rows */
    double *u;           /* n x q */
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
    wf_block block[3]; /* the difference rows last */
    wf_hinges hinge;
    double scale; /* residuals are held divided by this */
    double constant, noise;
    double pairs; /* sum of the weights of all complementary pairs */
    double bound; /* best so far, without the constant */
    double *z, *dz, *g, *zeta, *rhs;
    double *M, *factor;      /* Q x Q: the normal matrix (lower half), and its Cholesky factor */
    double *uhat;            /* n_groups x q: see newton.c */
    wf_candidate *basis_row; /* Q equations that determine the vertex, or NULL */
    double *basis;           /* Q x Q, column-major: the equations, each divided by its size */
    double *basis_size;      /* Q */
    double *v;               /* q: scratch for the unknowns of one kind */
    double *arena;           /* holds all of these arrays but basis_row */
} wf_ipm_state;

/* Numbers of scratch that start and newton work with, and how they lay them out. */
typedef struct {
    double *gram;             /* q x q */
    double *v, *right, *miss; /* q: unknowns; sums for the right-hand side and for zeta */
    double *t, *w, *e, *f;    /* WF_IPM_CHUNK rows */
    double *products;         /* the chunk's rows, weighted (wf_ipm_add_gram) */
} wf_ipm_room;

#endif
