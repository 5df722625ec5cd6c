/* The Newton system of the interior point method.
 *
 * With rows i of each kind, v = E_k z their unknowns (state.h), and hinges j, the problem is
 *
 *   min  g'z + sum (rp_i + rm_i) + eta sum t_j
 *        x_i'v - y_i = rp_i - rm_i                                  multiplier a_i
 *        sum_{i in j} (rp_i + rm_i) + u_j'v - c_j = t_j - sigma_j   multiplier lambda_j
 *
 * the first sum over the rows of the parts, everything but z not below 0. With lambda_i = 1 for
 * these rows and that of their hinge, lambda_j(i), for difference rows, sp = lambda - a and
 * sm = lambda + a, rest = eta - lambda, the point is optimal when
 *
 *   rp sp = rm sm = mu weight,  t rest = sigma lambda = mu                 with mu = 0
 *   rho  = y - x'v + rp - rm                        = 0  for each row
 *   pi   = sum (rp + rm) + u'v - c + sigma - t      = 0  for each hinge
 *   zeta = g + sum E'(a x) + sum E'(lambda u)       = 0
 *
 * Newton's step for these equations, the products with their second-order terms cp, cm, ct, cs from
 * the step before (Mehrotra, On the implementation of a primal-dual interior point method, 1992,
 * doi:10.1137/0802028), is reduced to dz alone. With alpha = rp/sp, gamma = rm/sm,
 * w = 1/(alpha + gamma) and
 *
 *   kp = (mu weight - cp)/sp - rp    km = (mu weight - cm)/sm - rm    e = w (rho + kp - km)
 *   kt = (mu - ct)/rest - t          ks = (mu - cs)/lambda - sigma
 *
 * the products give drp = kp - alpha (dlambda - da), drm = km - gamma (dlambda + da),
 * dt = kt + t/rest dlambda, dsigma = ks - sigma/lambda dlambda. Put into the equation of the row,
 * then into that of the hinge, then into zeta:
 *
 *   da      = w (x'dv - rho - kp + km + (alpha - gamma) dlambda)
 *   dlambda = (phi + uhat'dv)/omega
 *   M dz    = sum E'(e x) - sum E'(uhat phi/omega) - zeta
 *
 *   omega = t/rest + sigma/lambda + sum 4 alpha gamma w
 *   uhat  = u + sum (alpha - gamma) w x
 *   phi   = ks - kt + sum (kp + km - (alpha - gamma) e) + pi
 *   M     = sum E'(w x x')E + sum E'(uhat uhat'/omega)E
 *
 * The predictor aims at mu = 0 with no second-order terms: kp = -rp and so on. docs/solver.md
 * derives all this step by step, and the change of variables E with two coupled parts. */
#include "solve/ipm/newton.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/ipm/normal.h"

static double kt_of(const wf_hinges *h, ptrdiff_t j, double target, int corrected)
{
    return (corrected ? (target - h->ct[j]) / h->rest[j] : 0) - h->t[j];
}

static double ks_of(const wf_hinges *h, ptrdiff_t j, double target, int corrected)
{
    return (corrected ? (target - h->csigma[j]) / h->lambda[j] : 0) - h->sigma[j];
}

/* Difference rows of a chunk into the sums of their hinges. */
static void gather_hinges(wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                          double target, int corrected, const double *e)
{
    wf_hinges *h = &s->hinge;
    const wf_ipm_rows *r = &b->rows;
    for (ptrdiff_t i = i0; i < i0 + n; i++) {
        const double ip = 1 / r->sp[i], im = 1 / r->sm[i];
        const double alpha = r->rp[i] * ip, gamma = r->rm[i] * im, w = 1 / (alpha + gamma);
        const double mu = target * r->weight[i];
        const double kp = (corrected ? (mu - r->drp[i]) * ip : 0) - r->rp[i];
        const double km = (corrected ? (mu - r->drm[i]) * im : 0) - r->rm[i];
        const int32_t j = b->group[i];
        assert(j >= 0 && j < h->n);
        h->phi[j] += kp + km - (alpha - gamma) * e[i - i0];
        if (!corrected) {
            h->omega[j] += 4 * alpha * gamma * w;
            h->total[j] += r->rp[i] + r->rm[i];
            for (int k = 0; k < s->q; k++) {
                s->uhat[j * s->q + k] += (alpha - gamma) * w * b->x[k * b->n + i];
            }
        }
    }
}

/* What a chunk's equations miss, and its multipliers' share of zeta. */
static void find_misses(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                        const wf_ipm_room *room)
{
    wf_ipm_times(s, b, i0, n, room->v, room->t);
    for (ptrdiff_t i = i0; i < i0 + n; i++) {
        b->rows.rho[i] = b->y[i] - room->t[i - i0] + b->rows.rp[i] - b->rows.rm[i];
        room->f[i - i0] = 0.5 * (b->rows.sm[i] - b->rows.sp[i]);
    }
    wf_ipm_times_t(s, b, i0, n, room->f, room->miss);
}

/* The rows of one kind into the right-hand side, and as predictor into M and zeta. */
static void add_rows(wf_ipm_state *s, const wf_block *b, double target, int corrected,
                     const wf_ipm_room *room)
{
    const size_t q = (size_t)s->q;
    wf_ipm_unknowns(s, b->kind, s->z, room->v);
    memset(room->gram, 0, q * q * sizeof *room->gram);
    memset(room->right, 0, q * sizeof *room->right);
    memset(room->miss, 0, q * sizeof *room->miss);
    for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
        const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
        if (!corrected) {
            find_misses(s, b, i0, n, room);
        }
        wf_k->ipm_weights(n, &b->rows, i0, target, corrected, room->w, room->e);
        if (b->kind == WF_IPM_DIFFERENCE) {
            gather_hinges(s, b, i0, n, target, corrected, room->e);
        }
        wf_ipm_times_t(s, b, i0, n, room->e, room->right);
        if (!corrected) {
            wf_ipm_add_gram(s, b, i0, n, room->w, room->products, room->gram);
        }
    }
    wf_ipm_scatter(s, b->kind, room->right, s->rhs);
    if (!corrected) {
        wf_ipm_scatter(s, b->kind, room->miss, s->zeta);
        wf_ipm_scatter_gram(s, b->kind, room->gram);
    }
}

/* A hinge into M and zeta, and what its own equation misses. */
static void add_hinge(wf_ipm_state *s, ptrdiff_t j, const wf_ipm_room *room)
{
    const int q = s->q;
    wf_hinges *h = &s->hinge;
    const double *u = h->u + j * q, *uhat = s->uhat + j * q;
    double linear = 0;
    for (int k = 0; k < q; k++) {
        linear += u[k] * room->v[k];
        room->miss[k] = h->lambda[j] * u[k];
        for (int l = 0; l <= k; l++) {
            room->gram[l * q + k] = uhat[k] * uhat[l] / h->omega[j];
        }
    }
    h->pi[j] = h->total[j] + linear - h->c[j] + h->sigma[j] - h->t[j];
    wf_ipm_scatter(s, WF_IPM_DIFFERENCE, room->miss, s->zeta);
    wf_ipm_scatter_gram(s, WF_IPM_DIFFERENCE, room->gram);
}

/* rhs; as predictor M, and all misses, before it. */
static void assemble(wf_ipm_state *s, double target, int corrected, const wf_ipm_room *room)
{
    const int q = s->q;
    wf_hinges *h = &s->hinge;
    memset(s->rhs, 0, (size_t)s->Q * sizeof *s->rhs);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->phi[j] = ks_of(h, j, target, corrected) - kt_of(h, j, target, corrected);
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        add_rows(s, &s->block[blk], target, corrected, room);
    }
    wf_ipm_unknowns(s, WF_IPM_DIFFERENCE, s->z, room->v);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        if (!corrected) {
            add_hinge(s, j, room);
        }
        h->phi[j] += h->pi[j];
        for (int k = 0; k < q; k++) {
            room->right[k] = -s->uhat[j * q + k] * h->phi[j] / h->omega[j];
        }
        wf_ipm_scatter(s, WF_IPM_DIFFERENCE, room->right, s->rhs);
    }
    for (int k = 0; k < s->Q; k++) {
        s->rhs[k] -= s->zeta[k];
    }
}

void wf_newton_matrix(wf_ipm_state *s, const wf_ipm_room *room)
{
    const size_t q = (size_t)s->q, Q = (size_t)s->Q;
    wf_hinges *h = &s->hinge;
    memset(s->M, 0, Q * Q * sizeof *s->M);
    memcpy(s->zeta, s->g, Q * sizeof *s->zeta);
    if (h->n) {
        memcpy(s->uhat, h->u, (size_t)h->n * q * sizeof *s->uhat);
        memset(h->total, 0, (size_t)h->n * sizeof *h->total);
    }
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->omega[j] = h->t[j] / h->rest[j] + h->sigma[j] / h->lambda[j];
    }
    assemble(s, 0, 0, room);
}

void wf_newton_correct(wf_ipm_state *s, double target, const wf_ipm_room *room)
{
    assert(!(target < 0));
    assemble(s, target, 1, room);
}

/* -- from dz to all steps -- */

/* One pair x, sl and its step. */
static void gather_pair(wf_ipm_direction *d, double x, double dx, double sl, double ds)
{
    d->primal = fmax(d->primal, -dx / x);
    d->dual = fmax(d->dual, -ds / sl);
    d->sums[0] += x * ds;
    d->sums[1] += sl * dx;
    d->sums[2] += dx * ds;
}

void wf_newton_spread(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                      double *dlambda)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        dlambda[i] = b->kind == WF_IPM_DIFFERENCE ? s->hinge.dlambda[b->group[i0 + i]] : 0;
    }
}

static void expand_hinge(wf_ipm_state *s, ptrdiff_t j, double target, int corrected,
                         const double *v, wf_ipm_direction *d)
{
    wf_hinges *h = &s->hinge;
    double moved = h->phi[j];
    for (int k = 0; k < s->q; k++) {
        moved += s->uhat[j * s->q + k] * v[k];
    }
    h->dlambda[j] = moved / h->omega[j];
    h->dt[j] = kt_of(h, j, target, corrected) + h->t[j] / h->rest[j] * h->dlambda[j];
    h->dsigma[j] = ks_of(h, j, target, corrected) - h->sigma[j] / h->lambda[j] * h->dlambda[j];
    gather_pair(d, h->t[j], h->dt[j], h->rest[j], -h->dlambda[j]);
    gather_pair(d, h->sigma[j], h->dsigma[j], h->lambda[j], h->dlambda[j]);
    if (!corrected) {
        h->ct[j] = -h->dt[j] * h->dlambda[j];
        h->csigma[j] = h->dsigma[j] * h->dlambda[j];
    }
}

/* Largest step in [0, 1] that keeps everything from falling below 0. */
static double longest(double decrease)
{
    return decrease > 1 ? 1 / decrease : 1;
}

wf_ipm_direction wf_newton_expand(wf_ipm_state *s, double target, int corrected,
                                  const wf_ipm_room *room)
{
    wf_ipm_direction d = {0};
    wf_ipm_unknowns(s, WF_IPM_DIFFERENCE, s->dz, room->v);
    for (ptrdiff_t j = 0; j < s->hinge.n; j++) {
        expand_hinge(s, j, target, corrected, room->v, &d);
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        wf_ipm_unknowns(s, b->kind, s->dz, room->v);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_ipm_times(s, b, i0, n, room->v, room->t);
            wf_newton_spread(s, b, i0, n, room->e);
            wf_k->ipm_direction(n, &b->rows, i0, room->t, room->e, target, corrected, &d);
        }
    }
    d.primal = longest(d.primal);
    d.dual = longest(d.dual);
    return d;
}
