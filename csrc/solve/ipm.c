#include "solve/ipm_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"

enum { MOST_ITERATIONS = 120, PATIENCE = 12 };

static const double LEAST = 0.5; /* of its share of mu, for a product of a row */

/* -- products with the rows -- */

/* Two parts are held as z_1 and z_0 - z_1: where the hinge presses the difference to zero, its
 * large weights then stay in a block of their own and drown nothing. */
void wf_ipm_unknowns(const wf_ipm_state *s, int kind, const double *z, double *v)
{
    const int two = s->problem->parts == 2;
    for (int k = 0; k < s->q; k++) {
        v[k] = (kind != 2 ? z[k] : 0) + (two && kind != 1 ? z[s->q + k] : 0);
    }
}

void wf_ipm_scatter(const wf_ipm_state *s, int kind, const double *v, double *z)
{
    const int two = s->problem->parts == 2;
    for (int k = 0; k < s->q; k++) {
        if (kind != 2) {
            z[k] += v[k];
        }
        if (two && kind != 1) {
            z[s->q + k] += v[k];
        }
    }
}

void wf_ipm_times(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                  const double *v, double *t)
{
    memset(t, 0, (size_t)n * sizeof *t);
    for (int k = 0; k < s->q; k++) {
        wf_k->axpy(n, v[k], b->x + k * b->n + i0, t);
    }
}

void wf_ipm_times_t(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                    const double *e, double *out)
{
    for (int k = 0; k < s->q; k++) {
        out[k] += wf_k->dot(n, b->x + k * b->n + i0, e);
    }
}

/* gram (q x q, lower) += X' diag(w) X over a chunk. */
void wf_ipm_add_gram(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                     const double *w, double *room, double *gram)
{
    const int q = s->q;
    if (q <= WF_IPM_SMALL_Q) {
        for (int k = 0; k < q; k++) {
            const double *column = b->x + k * b->n + i0;
            for (ptrdiff_t i = 0; i < n; i++) {
                room[i] = w[i] * column[i];
            }
            for (int l = 0; l <= k; l++) {
                gram[l * q + k] += wf_k->dot(n, room, b->x + l * b->n + i0);
            }
        }
        return;
    }
    for (int k = 0; k < q; k++) {
        const double *column = b->x + k * b->n + i0;
        for (ptrdiff_t i = 0; i < n; i++) {
            room[k * n + i] = sqrt(w[i]) * column[i];
        }
    }
    const int rows = (int)n;
    const double one = 1;
    WF_BLAS(dsyrk_)("L", "T", &q, &rows, &one, room, &rows, &one, gram, &q, 1, 1);
}

/* M += the q x q (lower) matrix of one kind of rows. */
void wf_ipm_scatter_gram(wf_ipm_state *s, int kind, const double *gram)
{
    const int q = s->q, Q = s->Q;
    for (int k = 0; k < q; k++) {
        for (int l = 0; l < q; l++) {
            const double value = l <= k ? gram[l * q + k] : gram[k * q + l];
            if (kind != 2) {
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
        for (int k = 0; k < Q;
             k++) { /* relative to its own size first: directions may differ by many orders */
            s->factor[k * Q + k] += shift * (s->M[k * Q + k] + 1e-3 * shift * largest) + 1e-300;
        }
        int info;
        WF_BLAS(dpotrf_)("L", &Q, s->factor, &Q, &info, 1);
        if (info == 0) {
            return;
        }
        shift = shift == 0 ? 1e-15 : shift * 10;
    }
    memset(s->factor, 0,
           (size_t)(Q * Q) *
               sizeof *s->factor); /* not finite: a step of zero ends the iterations */
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

/* -- one iteration -- */

/* Difference rows of a chunk into the sums of their hinges. */
static void gather_hinges(wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                          double target, int corrected, int matrix, const double *e)
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
        h->phi[j] += kp + km - (alpha - gamma) * e[i - i0];
        if (matrix) {
            h->omega[j] += 4 * alpha * gamma * w;
            h->total[j] += r->rp[i] + r->rm[i];
            for (int k = 0; k < s->q; k++) {
                s->uhat[j * s->q + k] += (alpha - gamma) * w * b->x[k * b->n + i];
            }
        }
    }
}

/* rhs of the normal equations; with `matrix` also M, the row and hinge misses, and the hinge sums.
 */
static void assemble(wf_ipm_state *s, double target, int corrected, int matrix, double *room)
{
    const int q = s->q, Q = s->Q;
    wf_hinges *h = &s->hinge;
    double *gram = room, *v = gram + q * q, *part = v + q, *chunk = part + q;
    double *t = chunk, *w = t + WF_IPM_CHUNK, *e = w + WF_IPM_CHUNK, *f = e + WF_IPM_CHUNK,
           *scratch = f + WF_IPM_CHUNK;
    for (int k = 0; k < Q; k++) {
        s->rhs[k] = 0;
    }
    if (matrix) {
        memset(s->M, 0, (size_t)(Q * Q) * sizeof *s->M);
        memcpy(s->zeta, s->g, (size_t)Q * sizeof *s->zeta);
        if (h->n) {
            memcpy(s->uhat, h->u, (size_t)(h->n * q) * sizeof *s->uhat);
            memset(h->total, 0, (size_t)h->n * sizeof *h->total);
        }
        for (ptrdiff_t j = 0; j < h->n; j++) {
            h->omega[j] = h->t[j] / h->rest[j] + h->sigma[j] / h->lambda[j];
        }
    }
    for (ptrdiff_t j = 0; j < h->n; j++) {
        const double kt = (corrected ? (target - h->ct[j]) / h->rest[j] : 0) - h->t[j];
        const double ks = (corrected ? (target - h->csigma[j]) / h->lambda[j] : 0) - h->sigma[j];
        h->phi[j] = ks - kt;
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        wf_block *b = &s->block[blk];
        wf_ipm_unknowns(s, b->kind, s->z, v);
        memset(gram, 0, (size_t)(q * q) * sizeof *gram);
        memset(part, 0, (size_t)q * sizeof *part);
        double *zeta_part = s->dz; /* free here */
        memset(zeta_part, 0, (size_t)q * sizeof *zeta_part);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            if (matrix) {
                wf_ipm_times(s, b, i0, n, v, t);
                for (ptrdiff_t i = 0; i < n; i++) {
                    b->rows.rho[i0 + i] =
                        b->y[i0 + i] - t[i] + b->rows.rp[i0 + i] - b->rows.rm[i0 + i];
                }
            }
            wf_k->ipm_weights(n, &b->rows, i0, target, corrected, w, e);
            if (b->kind == 2) {
                gather_hinges(s, b, i0, n, target, corrected, matrix, e);
            }
            wf_ipm_times_t(s, b, i0, n, e, part);
            if (matrix) {
                for (ptrdiff_t i = 0; i < n; i++) {
                    f[i] = 0.5 * (b->rows.sm[i0 + i] - b->rows.sp[i0 + i]);
                }
                wf_ipm_times_t(s, b, i0, n, f, zeta_part);
                wf_ipm_add_gram(s, b, i0, n, w, scratch, gram);
            }
        }
        wf_ipm_scatter(s, b->kind, part, s->rhs);
        if (matrix) {
            wf_ipm_scatter(s, b->kind, zeta_part, s->zeta);
            wf_ipm_scatter_gram(s, b->kind, gram);
        }
    }
    wf_ipm_unknowns(s, 2, s->z, v);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        const double *u = h->u + j * q, *uhat = s->uhat + j * q;
        if (matrix) {
            double linear = 0;
            for (int k = 0; k < q; k++) {
                linear += u[k] * v[k];
                part[k] = h->lambda[j] * u[k];
                for (int l = 0; l <= k; l++) {
                    gram[l * q + k] = uhat[k] * uhat[l] / h->omega[j];
                }
            }
            h->pi[j] = h->total[j] + linear - h->c[j] + h->sigma[j] - h->t[j];
            wf_ipm_scatter(s, 2, part, s->zeta);
            wf_ipm_scatter_gram(s, 2, gram);
        }
        h->phi[j] += h->pi[j];
        for (int k = 0; k < q; k++) {
            part[k] = -uhat[k] * h->phi[j] / h->omega[j];
        }
        wf_ipm_scatter(s, 2, part, s->rhs);
    }
    for (int k = 0; k < Q; k++) {
        s->rhs[k] -= s->zeta[k];
    }
}

static void gather_pair(wf_ipm_direction *d, double x, double dx, double sl, double ds)
{
    d->primal = fmax(d->primal, -dx / x);
    d->dual = fmax(d->dual, -ds / sl);
    d->sums[0] += x * ds;
    d->sums[1] += sl * dx;
    d->sums[2] += dx * ds;
}

/* The hinges' dlambda of the rows of a chunk; zeros for rows without a hinge. */
static void spread(const wf_ipm_state *s, const wf_block *b, ptrdiff_t i0, ptrdiff_t n,
                   double *dlambda)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        dlambda[i] = b->kind == 2 ? s->hinge.dlambda[b->group[i0 + i]] : 0;
    }
}

/* Largest step in [0, 1] that keeps everything from falling below 0. */
static double longest(double decrease)
{
    return decrease > 1 ? 1 / decrease : 1;
}

/* From dz to the steps of all rows and hinges. */
static wf_ipm_direction expand(wf_ipm_state *s, double target, int corrected, double *room)
{
    const int q = s->q;
    wf_hinges *h = &s->hinge;
    double *v = room, *t = v + q, *dlambda = t + WF_IPM_CHUNK;
    wf_ipm_direction d = {0};
    wf_ipm_unknowns(s, s->problem->parts == 2 ? 2 : 0, s->dz, v);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        double moved = h->phi[j];
        for (int k = 0; k < q; k++) {
            moved += s->uhat[j * q + k] * v[k];
        }
        h->dlambda[j] = moved / h->omega[j];
        const double kt = (corrected ? (target - h->ct[j]) / h->rest[j] : 0) - h->t[j];
        const double ks = (corrected ? (target - h->csigma[j]) / h->lambda[j] : 0) - h->sigma[j];
        h->dt[j] = kt + h->t[j] / h->rest[j] * h->dlambda[j];
        h->dsigma[j] = ks - h->sigma[j] / h->lambda[j] * h->dlambda[j];
        gather_pair(&d, h->t[j], h->dt[j], h->rest[j], -h->dlambda[j]);
        gather_pair(&d, h->sigma[j], h->dsigma[j], h->lambda[j], h->dlambda[j]);
        if (!corrected) {
            h->ct[j] = -h->dt[j] * h->dlambda[j];
            h->csigma[j] = h->dsigma[j] * h->dlambda[j];
        }
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        wf_block *b = &s->block[blk];
        wf_ipm_unknowns(s, b->kind, s->dz, v);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_ipm_times(s, b, i0, n, v, t);
            spread(s, b, i0, n, dlambda);
            wf_k->ipm_direction(n, &b->rows, i0, t, dlambda, target, corrected, &d);
        }
    }
    d.primal = longest(d.primal);
    d.dual = longest(d.dual);
    return d;
}

static void move(wf_ipm_state *s, double primal, double dual, double mu, double *dlambda)
{
    for (int k = 0; k < s->Q; k++) {
        s->z[k] += primal * s->dz[k];
    }
    wf_hinges *h = &s->hinge;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->t[j] += primal * h->dt[j];
        h->sigma[j] += primal * h->dsigma[j];
        h->lambda[j] += dual * h->dlambda[j];
        h->rest[j] -= dual * h->dlambda[j];
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        wf_block *b = &s->block[blk];
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            spread(s, b, i0, n, dlambda);
            /* difference rows enter their hinge by rp + rm, which must not change by itself */
            wf_k->ipm_move(n, &b->rows, i0, dlambda, primal, dual, mu, b->kind == 2 ? 0 : LEAST);
        }
    }
}

/* Sum of all complementary products, and F as the iterate sees it. */
static double complementarity(const wf_ipm_state *s, double *value)
{
    double products = 0, total = 0;
    for (int k = 0; k < s->Q; k++) {
        total += s->g[k] * s->z[k];
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        const double size = wf_k->sum(b->n, b->rows.rp) + wf_k->sum(b->n, b->rows.rm);
        products +=
            wf_k->dot(b->n, b->rows.rp, b->rows.sp) + wf_k->dot(b->n, b->rows.rm, b->rows.sm);
        total += b->kind == 2 ? 0 : size;
    }
    const wf_hinges *h = &s->hinge;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        products += h->t[j] * h->rest[j] + h->sigma[j] * h->lambda[j];
        total += s->problem->eta * h->t[j];
    }
    *value = total + s->constant;
    return products;
}

static wf_status iterate(wf_ipm_state *s, int (*stop)(void *), void *context, double *room)
{
    const double pairs = s->pairs;
    double best = INFINITY, size_g = 1;
    int waited = 0;
    for (int iteration = 0; iteration < MOST_ITERATIONS; iteration++) {
        if (stop && stop(context)) {
            return WF_INTERRUPTED;
        }
        double value;
        const double products = complementarity(s, &value);
        assemble(s, 0, 0, 1, room);
        double miss = 0;
        for (int k = 0; k < s->Q; k++) {
            miss = fmax(miss, fabs(s->zeta[k]));
            size_g = fmax(size_g, fabs(s->g[k]));
        }
        wf_ipm_factor(s); /* wf_ipm_bound uses the last one */
        const double enough = fmax(fabs(value) * s->problem->tol, s->noise);
        if (!(products == products)) {
            return WF_OK;
        }
        if (products <=
            0.1 * enough) { /* at the end rounding may spoil the multipliers: keep the best bound */
            const double primal = wf_ipm_primal(s, s->z);
            s->bound = fmax(s->bound, wf_ipm_bound(s, primal));
            const double gap = primal - s->bound;
            if (gap <= 0.1 * enough || products <= 1e-12 * enough ||
                (products <= 0.01 * enough && miss <= 1e-9 * size_g * sqrt(pairs))) {
                return WF_OK;
            }
        }
        waited = products < 0.9 * best ? 0 : waited + 1;
        best = fmin(best, products);
        if (waited > PATIENCE) {
            return WF_OK;
        }
        memcpy(s->dz, s->rhs, (size_t)s->Q * sizeof *s->dz);
        wf_ipm_backsolve(s, s->dz);
        const wf_ipm_direction affine = expand(s, 0, 0, room);
        const double after = products + affine.dual * affine.sums[0] +
                             affine.primal * affine.sums[1] +
                             affine.primal * affine.dual * affine.sums[2];
        if (!isfinite(after)) {
            return WF_OK;
        }
        const double ratio = fmax(after, 0) / products;
        const double target =
            fmax(ratio * ratio * ratio, 1e-4) * products / pairs; /* steps leave 1e-3 anyway */
        assemble(s, target, 1, 0, room);
        memcpy(s->dz, s->rhs, (size_t)s->Q * sizeof *s->dz);
        wf_ipm_backsolve(s, s->dz);
        const wf_ipm_direction full = expand(s, target, 1, room);
        const double back = 1 - fmin(0.05, fmax(1e-3, 0.1 * ratio));
        const double primal = full.primal < 1 ? back * full.primal : 1;
        const double dual = full.dual < 1 ? back * full.dual : 1;
        if (!isfinite(full.sums[0] + full.sums[1]) || fmax(primal, dual) < 1e-12) {
            return WF_OK;
        }
        const double rest =
            products + dual * full.sums[0] + primal * full.sums[1] + primal * dual * full.sums[2];
        move(s, primal, dual, fmax(rest, 0) / pairs, room);
    }
    return WF_OK;
}

/* F where there is nothing to choose: every row is zero. */
static double value_without_unknowns(const wf_ipm *problem)
{
    double value = problem->constant;
    for (int part = 0; part < problem->parts; part++) {
        value += wf_k->sum_abs(problem->part[part].n, problem->part[part].y);
    }
    for (ptrdiff_t j = 0; j < problem->n_groups; j++) {
        double excess = -problem->c[j];
        for (ptrdiff_t i = 0; i < problem->difference.n; i++) {
            excess += problem->group[i] == j ? fabs(problem->difference.y[i]) : 0;
        }
        value += problem->eta * fmax(excess, 0);
    }
    return value;
}

wf_status wf_ipm_solve(const wf_ipm *problem, int (*stop)(void *), void *context,
                       wf_ipm_result *result)
{
    if (problem->q == 0) {
        result->primal = result->bound = value_without_unknowns(problem);
        return WF_OK;
    }
    wf_ipm_state s = {
        .problem = problem, .q = (int)problem->q, .Q = (int)(problem->parts * problem->q)};
    s.bound = -INFINITY;
    double *room;
    wf_status status = wf_ipm_allocate(&s, &room);
    if (status != WF_OK) {
        return status;
    }
    wf_ipm_start(&s, room);
    status = iterate(&s, stop, context, room);
    if (status != WF_OK) {
        goto done;
    }
    if (problem->polish) {
        status = wf_ipm_polish(&s);
    }
    const double primal = wf_ipm_primal(&s, s.z);
    result->primal = (primal + s.constant) * s.scale;
    s.bound = fmax(s.bound, wf_ipm_bound(&s, primal));
    result->bound = (s.bound + s.constant) * s.scale;
    for (int part = 0; part < problem->parts; part++) {
        wf_ipm_unknowns(&s, part, s.z, result->z + part * s.q);
    }
    for (int k = 0; k < s.Q; k++) {
        result->z[k] *= s.scale;
    }
done:
    free(s.basis_row);
    free(s.arena);
    return status;
}
