/* The start of the interior point method: memory, scale, and a first point inside all bounds. */
#include "solve/ipm_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* z by least squares, unless the problem comes with a linear term: then it is centred and 0 is
 * near. */
static void start_z(wf_ipm_state *s, double *room)
{
    const int q = s->q;
    memset(s->z, 0, (size_t)s->Q * sizeof *s->z);
    if (s->problem->g) {
        return;
    }
    double *gram = room, *part = gram + q * q, *w = part + q, *scratch = w + WF_IPM_CHUNK;
    memset(s->M, 0, (size_t)(s->Q * s->Q) * sizeof *s->M);
    for (int i = 0; i < WF_IPM_CHUNK; i++) {
        w[i] = 1;
    }
    for (int blk = 0; blk < s->problem->parts; blk++) {
        const wf_block *b = &s->block[blk];
        memset(gram, 0, (size_t)(q * q + q) * sizeof *gram);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_ipm_add_gram(s, b, i0, n, w, scratch, gram);
            wf_ipm_times_t(s, b, i0, n, b->y + i0, part);
        }
        wf_ipm_scatter_gram(s, b->kind, gram);
        wf_ipm_scatter(s, b->kind, part, s->z);
    }
    wf_ipm_factor(s);
    wf_ipm_backsolve(s, s->z);
}

/* Residuals e of every row at z (into rho), and the mean size of those of one kind. */
static double residuals(wf_ipm_state *s, wf_block *b, double *room)
{
    double *v = room, total = 0;
    wf_ipm_unknowns(s, b->kind, s->z, v);
    for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
        const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
        wf_ipm_times(s, b, i0, n, v, b->rows.rho + i0);
        for (ptrdiff_t i = i0; i < i0 + n; i++) {
            b->rows.rho[i] -= b->y[i];
            total += fabs(b->rows.rho[i]);
        }
    }
    return b->n ? total / (double)b->n : 0;
}

/* A row weighs what its size is: were all to keep the same distance from their bounds, rows of
 * little size, which decide nothing, would hold up the others. */
static void weigh_rows(wf_ipm_state *s, wf_block *b)
{
    const double least = 1e-10;
    for (ptrdiff_t i = 0; i < b->n; i++) {
        double h2 = 0;
        for (int k = 0; k < s->q; k++) {
            h2 += b->x[k * b->n + i] * b->x[k * b->n + i];
        }
        b->rows.weight[i] = fmax(sqrt(h2 / s->q), least);
        s->pairs += 2 * b->rows.weight[i];
    }
}

void wf_ipm_start(wf_ipm_state *s, double *room)
{
    const wf_ipm *problem = s->problem;
    start_z(s, room);
    double mean[3] = {0, 0, 0}, scale = 0, size = 0;
    for (int blk = 0; blk < s->n_blocks; blk++) {
        mean[blk] = residuals(s, &s->block[blk], room);
        scale = fmax(scale, s->block[blk].kind == 2 ? 0 : mean[blk]);
        if (s->block[blk].n) {
            size = fmax(size,
                        wf_k->sum_abs(s->block[blk].n, s->block[blk].y) / (double)s->block[blk].n);
        }
    }
    s->scale = fmax(scale, 1e-10 * size); /* residuals of rounding only are no measure */
    s->scale = s->scale > 0 ? s->scale : 1;
    s->constant = problem->constant / s->scale;
    s->noise = problem->noise / s->scale;
    for (int k = 0; k < s->Q; k++) {
        s->z[k] /= s->scale;
        s->g[k] = 0;
    }
    for (int part = 0; part < problem->parts && problem->g; part++) {
        wf_ipm_scatter(s, part, problem->g + part * s->q, s->g);
    }
    wf_hinges *h = &s->hinge;
    s->pairs = 2 * (double)h->n;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->c[j] = problem->c[j] / s->scale;
        h->total[j] = 0;
        h->lambda[j] = h->rest[j] = problem->eta / 2;
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        wf_block *b = &s->block[blk];
        const double room_at_zero = 0.1 * mean[blk] / s->scale + 1e-3;
        const double lambda = b->kind == 2 ? problem->eta / 2 : 1;
        weigh_rows(s, b);
        for (ptrdiff_t i = 0; i < b->n; i++) {
            const double e = b->rows.rho[i] / s->scale;
            b->y[i] /= s->scale;
            const double more = room_at_zero * b->rows.weight[i] + 0.1 * fabs(e);
            b->rows.rp[i] = fmax(e, 0) + more;
            b->rows.rm[i] = fmax(-e, 0) + more;
            b->rows.sp[i] = b->rows.sm[i] = lambda;
            if (b->kind == 2) {
                h->total[b->group[i]] += b->rows.rp[i] + b->rows.rm[i];
            }
        }
    }
    double *v = room;
    wf_ipm_unknowns(s, problem->parts == 2 ? 2 : 0, s->z, v);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        double excess = h->total[j] - h->c[j];
        for (int k = 0; k < s->q; k++) {
            excess += h->u[j * s->q + k] * v[k];
        }
        const double room_at_zero = 0.1 * (fabs(h->total[j]) + fabs(h->c[j])) + 1e-3;
        h->t[j] = fmax(excess, 0) + room_at_zero;
        h->sigma[j] = h->t[j] - excess;
    }
}

static double *take(double **arena, ptrdiff_t n)
{
    double *here = *arena;
    *arena += n;
    return here;
}

wf_status wf_ipm_allocate(wf_ipm_state *s, double **room)
{
    const wf_ipm *problem = s->problem;
    const ptrdiff_t q = s->q, Q = s->Q, S = problem->n_groups;
    ptrdiff_t rows = 0;
    for (int part = 0; part < problem->parts; part++) {
        rows += problem->part[part].n;
    }
    rows += problem->difference.n;
    const ptrdiff_t room_size = q * q + 3 * q + (4 + (q > WF_IPM_SMALL_Q ? q : 1)) * WF_IPM_CHUNK;
    const ptrdiff_t size = 10 * rows + (14 + 2 * q) * S + 6 * Q + 3 * Q * Q + room_size;
    s->arena = calloc((size_t)size, sizeof *s->arena);
    if (!s->arena) {
        return WF_NO_MEMORY;
    }
    double *at = s->arena;
    for (int kind = 0; kind < 3; kind++) {
        const wf_rows *from = kind == 2 ? &problem->difference : &problem->part[kind];
        if ((kind == 1 && problem->parts == 1) || (kind == 2 && from->n == 0)) {
            continue;
        }
        wf_block *b = &s->block[s->n_blocks++];
        *b = (wf_block){
            .kind = kind, .n = from->n, .x = from->x, .group = kind == 2 ? problem->group : NULL};
        double **fields[] = {&b->y,        &b->rows.rp,    &b->rows.rm, &b->rows.sp,
                             &b->rows.sm,  &b->rows.rho,   &b->rows.da, &b->rows.drp,
                             &b->rows.drm, &b->rows.weight};
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            *fields[i] = take(&at, b->n);
        }
        if (b->n) {
            memcpy(b->y, from->y, (size_t)b->n * sizeof *b->y);
        }
    }
    wf_hinges *h = &s->hinge;
    h->n = S;
    double **fields[] = {&h->c,       &h->lambda, &h->rest,   &h->t,    &h->sigma,
                         &h->dlambda, &h->dt,     &h->dsigma, &h->ct,   &h->csigma,
                         &h->omega,   &h->phi,    &h->pi,     &h->total};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        *fields[i] = take(&at, S);
    }
    h->u = take(&at, S * q);
    if (problem->u && S) {
        memcpy(h->u, problem->u, (size_t)(S * q) * sizeof *h->u);
    }
    s->uhat = take(&at, S * q);
    s->z = take(&at, Q);
    s->dz = take(&at, Q);
    s->g = take(&at, Q);
    s->zeta = take(&at, Q);
    s->rhs = take(&at, Q);
    s->M = take(&at, Q * Q);
    s->factor = take(&at, Q * Q);
    s->basis = take(&at, Q * Q);
    s->basis_size = take(&at, Q);
    *room = take(&at, room_size);
    return WF_OK;
}
