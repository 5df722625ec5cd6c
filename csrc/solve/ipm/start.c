/* The start of the interior point method: memory, scale, weights, and a first point inside all
 * bounds. Notation as in newton.c. */
#include "solve/ipm/start.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/ipm/normal.h"

/* A first point is as far from its bounds as a tenth of the mean residual, and a little where that
 * is zero: near enough to keep what least squares has found, and far enough for the first steps not
 * to be cut off. */
static const double ROOM = 0.1, LEAST_ROOM = 1e-3;

enum { ROW_FIELDS = 10, HINGE_FIELDS = 14 }; /* arrays of a row, and of a hinge */

/* z by least squares, unless the problem comes with a linear term: then it is centred, and 0 is
 * near. */
static void start_z(wf_ipm_state *s, const wf_ipm_room *room)
{
    const int q = s->q;
    memset(s->z, 0, (size_t)s->Q * sizeof *s->z);
    if (s->problem->g) {
        return;
    }
    memset(s->M, 0, (size_t)(s->Q * s->Q) * sizeof *s->M);
    for (int i = 0; i < WF_IPM_CHUNK; i++) {
        room->w[i] = 1;
    }
    for (int blk = 0; blk < s->problem->parts; blk++) {
        const wf_block *b = &s->block[blk];
        memset(room->gram, 0, (size_t)(q * q) * sizeof *room->gram);
        memset(room->right, 0, (size_t)q * sizeof *room->right);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_ipm_add_gram(s, b, i0, n, room->w, room->products, room->gram);
            wf_ipm_times_t(s, b, i0, n, b->y + i0, room->right);
        }
        wf_ipm_scatter_gram(s, b->kind, room->gram);
        wf_ipm_scatter(s, b->kind, room->right, s->z);
    }
    wf_ipm_factor(s);
    wf_ipm_backsolve(s, s->z);
}

/* Residuals e of every row at z (into rho), and the mean size of those of one kind. */
static double residuals(const wf_ipm_state *s, const wf_block *b)
{
    double total = 0;
    wf_ipm_unknowns(s, b->kind, s->z, s->v);
    for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
        const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
        wf_ipm_times(s, b, i0, n, s->v, b->rows.rho + i0);
        for (ptrdiff_t i = i0; i < i0 + n; i++) {
            b->rows.rho[i] -= b->y[i];
            total += fabs(b->rows.rho[i]);
        }
    }
    return b->n ? total / (double)b->n : 0;
}

/* A row weighs what its size is: were all to keep the same distance from their bounds, rows of
 * little size, which decide nothing, would hold up the others. A whitened row has size 1; those
 * below the least are zero but for rounding. */
static void weigh_rows(wf_ipm_state *s, const wf_block *b)
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

/* The scale is the largest mean |residual| of a part; residuals of rounding only are no measure.
 * z and what the problem gives, in that scale. `mean` is that of each block. */
static void set_scale(wf_ipm_state *s, double *mean)
{
    const wf_ipm *problem = s->problem;
    double scale = 0, size = 0;
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        mean[blk] = residuals(s, b);
        scale = fmax(scale, b->kind == WF_IPM_DIFFERENCE ? 0 : mean[blk]);
        if (b->n) {
            size = fmax(size, wf_k->sum_abs(b->n, b->y) / (double)b->n);
        }
    }
    s->scale = fmax(scale, 1e-10 * size);
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
}

/* Multipliers in the middle of their range; rp and rm as the residual is, and some room more. */
static void start_rows(wf_ipm_state *s, const wf_block *b, double mean)
{
    const double room_at_zero = ROOM * mean / s->scale + LEAST_ROOM;
    const double lambda = b->kind == WF_IPM_DIFFERENCE ? s->problem->eta / 2 : 1;
    for (ptrdiff_t i = 0; i < b->n; i++) {
        const double e = b->rows.rho[i] / s->scale;
        b->y[i] /= s->scale;
        const double more = room_at_zero * b->rows.weight[i] + ROOM * fabs(e);
        b->rows.rp[i] = fmax(e, 0) + more;
        b->rows.rm[i] = fmax(-e, 0) + more;
        b->rows.sp[i] = b->rows.sm[i] = lambda;
        if (b->kind == WF_IPM_DIFFERENCE) {
            s->hinge.total[b->group[i]] += b->rows.rp[i] + b->rows.rm[i];
        }
    }
}

void wf_ipm_start(wf_ipm_state *s, const wf_ipm_room *room)
{
    wf_hinges *h = &s->hinge;
    double mean[3] = {0, 0, 0};
    start_z(s, room);
    set_scale(s, mean);
    s->pairs = 2 * (double)h->n;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->c[j] = s->problem->c[j] / s->scale;
        h->total[j] = 0;
        h->lambda[j] = h->rest[j] = s->problem->eta / 2;
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        weigh_rows(s, &s->block[blk]);
        start_rows(s, &s->block[blk], mean[blk]);
    }
    wf_ipm_unknowns(s, WF_IPM_DIFFERENCE, s->z, s->v);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        double excess = h->total[j] - h->c[j];
        for (int k = 0; k < s->q; k++) {
            excess += h->u[j * s->q + k] * s->v[k];
        }
        const double room_at_zero = ROOM * (fabs(h->total[j]) + fabs(h->c[j])) + LEAST_ROOM;
        h->t[j] = fmax(excess, 0) + room_at_zero;
        h->sigma[j] = h->t[j] - excess;
    }
}

/* -- memory -- */

static double *take(double **arena, ptrdiff_t n)
{
    double *here = *arena;
    *arena += n;
    return here;
}

/* Rows and hinges out of the arena, with copies of what is scaled. */
static void lay_out_rows(wf_ipm_state *s, double **at)
{
    const wf_ipm *problem = s->problem;
    for (int kind = 0; kind <= WF_IPM_DIFFERENCE; kind++) {
        const int hinged = kind == WF_IPM_DIFFERENCE;
        const wf_rows *from = hinged ? &problem->difference : &problem->part[kind];
        if ((kind == 1 && problem->parts == 1) || (hinged && from->n == 0)) {
            continue;
        }
        wf_block *b = &s->block[s->n_blocks++];
        *b = (wf_block){
            .kind = kind, .n = from->n, .x = from->x, .group = hinged ? problem->group : NULL};
        double **fields[] = {&b->y,        &b->rows.rp,    &b->rows.rm, &b->rows.sp,
                             &b->rows.sm,  &b->rows.rho,   &b->rows.da, &b->rows.drp,
                             &b->rows.drm, &b->rows.weight};
        static_assert(sizeof fields / sizeof *fields == ROW_FIELDS, "as the arena is made for");
        for (size_t i = 0; i < ROW_FIELDS; i++) {
            *fields[i] = take(at, b->n);
        }
        if (b->n) {
            memcpy(b->y, from->y, (size_t)b->n * sizeof *b->y);
        }
    }
}

static void lay_out_hinges(wf_ipm_state *s, double **at)
{
    const wf_ipm *problem = s->problem;
    const ptrdiff_t S = problem->n_groups, q = s->q;
    wf_hinges *h = &s->hinge;
    h->n = S;
    double **fields[] = {&h->c,       &h->lambda, &h->rest,   &h->t,    &h->sigma,
                         &h->dlambda, &h->dt,     &h->dsigma, &h->ct,   &h->csigma,
                         &h->omega,   &h->phi,    &h->pi,     &h->total};
    static_assert(sizeof fields / sizeof *fields == HINGE_FIELDS, "as the arena is made for");
    for (size_t i = 0; i < HINGE_FIELDS; i++) {
        *fields[i] = take(at, S);
    }
    h->u = take(at, S * q);
    if (problem->u && S) {
        memcpy(h->u, problem->u, (size_t)(S * q) * sizeof *h->u);
    }
    s->uhat = take(at, S * q);
}

wf_status wf_ipm_allocate(wf_ipm_state *s, wf_ipm_room *room)
{
    const wf_ipm *problem = s->problem;
    const ptrdiff_t q = s->q, Q = s->Q, S = problem->n_groups;
    ptrdiff_t rows = problem->difference.n;
    for (int part = 0; part < problem->parts; part++) {
        rows += problem->part[part].n;
    }
    const ptrdiff_t room_size = q * q + 3 * q + (4 + wf_ipm_chunks(q)) * WF_IPM_CHUNK;
    const ptrdiff_t size = ROW_FIELDS * rows + (HINGE_FIELDS + 2 * q) * S + 6 * Q + 3 * Q * Q + q;
    s->arena = calloc((size_t)(size + room_size), sizeof *s->arena);
    if (!s->arena) {
        return WF_NO_MEMORY;
    }
    double *at = s->arena;
    lay_out_rows(s, &at);
    lay_out_hinges(s, &at);
    double **vectors[] = {&s->z, &s->dz, &s->g, &s->zeta, &s->rhs, &s->basis_size};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) {
        *vectors[i] = take(&at, Q);
    }
    s->M = take(&at, Q * Q);
    s->factor = take(&at, Q * Q);
    s->basis = take(&at, Q * Q);
    s->v = take(&at, q);
    room->gram = take(&at, q * q);
    room->v = take(&at, q);
    room->right = take(&at, q);
    room->miss = take(&at, q);
    room->t = take(&at, WF_IPM_CHUNK);
    room->w = take(&at, WF_IPM_CHUNK);
    room->e = take(&at, WF_IPM_CHUNK);
    room->f = take(&at, WF_IPM_CHUNK);
    room->products = take(&at, wf_ipm_chunks(q) * WF_IPM_CHUNK);
    assert(at == s->arena + size + room_size);
    return WF_OK;
}
