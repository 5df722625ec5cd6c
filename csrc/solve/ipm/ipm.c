/* A primal-dual predictor-corrector method for the linear program behind problem.h: its iterations.
 *
 * Mehrotra, On the implementation of a primal-dual interior point method, 1992,
 * doi:10.1137/0802028; for least absolute deviations Portnoy and Koenker, The Gaussian hare and the
 * Laplacian tortoise, 1997, doi:10.1214/ss/1030037960. Each iteration solves normal equations in
 * the parts * q unknowns only, twice with one factor (newton.c has the notation and the system).
 * The central path is weighted: rp sp = rm sm = mu weight, weight the size of the row (start.c). */
#include "solve/ipm/ipm.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/ipm/finish.h"
#include "solve/ipm/newton.h"
#include "solve/ipm/normal.h"
#include "solve/ipm/start.h"
#include "solve/ipm/state.h"

enum {
    MOST_ITERATIONS = 120, /* far more than it takes where rounding lets it */
    PATIENCE = 12 /* iterations that do not lower the products by a tenth: rounding has won */
};

/* Of its share of mu, for a product of a row. Below it a row would leap from bound to bound; half
 * leaves room for the unevenness that a usual step makes. */
static const double LEAST = 0.5;

static void move(wf_ipm_state *s, double primal, double dual, double mu, double *dlambda)
{
    assert(primal >= 0 && primal <= 1 && dual >= 0 && dual <= 1);
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
        const wf_block *b = &s->block[blk];
        /* difference rows enter their hinge by rp + rm, which must not change by itself */
        const double least = b->kind == WF_IPM_DIFFERENCE ? 0 : LEAST;
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_newton_spread(s, b, i0, n, dlambda);
            wf_k->ipm_move(n, &b->rows, i0, dlambda, primal, dual, mu, least);
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
        total += b->kind == WF_IPM_DIFFERENCE ? 0 : size;
    }
    const wf_hinges *h = &s->hinge;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        products += h->t[j] * h->rest[j] + h->sigma[j] * h->lambda[j];
        total += s->problem->eta * h->t[j];
    }
    *value = total + s->constant;
    return products;
}

/* Whether the point is good enough, its bound kept where it is the best: at the end rounding may
 * spoil the multipliers. The bound costs a few reads of the rows, so it is asked for only where the
 * products, which the gap comes to, promise a tenth of what is wanted. Good is that gap, or
 * products that have come to their end while the bound has not: 1e-12 of it, or 0.01 with
 * multipliers that balance. `size_g` is the largest |g_k|, at least 1. */
static int is_good(wf_ipm_state *s, double products, double enough, double size_g)
{
    if (!(products <= 0.1 * enough)) {
        return 0;
    }
    double miss = 0;
    for (int k = 0; k < s->Q; k++) {
        miss = fmax(miss, fabs(s->zeta[k]));
    }
    const double primal = wf_ipm_primal(s, s->z);
    s->bound = fmax(s->bound, wf_ipm_bound(s, primal));
    const double gap = primal - s->bound;
    return gap <= 0.1 * enough || products <= 1e-12 * enough ||
           (products <= 0.01 * enough && miss <= 1e-9 * size_g * sqrt(s->pairs));
}

/* Predictor, corrector, and the step. 0 where numbers have come to their end. */
static int step(wf_ipm_state *s, double products, const wf_ipm_room *room)
{
    memcpy(s->dz, s->rhs, (size_t)s->Q * sizeof *s->dz);
    wf_ipm_backsolve(s, s->dz);
    const wf_ipm_direction affine = wf_newton_expand(s, 0, 0, room);
    const double after = products + affine.dual * affine.sums[0] + affine.primal * affine.sums[1] +
                         affine.primal * affine.dual * affine.sums[2];
    if (!isfinite(after)) {
        return 0;
    }
    /* Mehrotra's (after / before)^3. The step leaves at least 1e-3 of the products, so to aim below
     * 1e-4 gains nothing and unbalances them. */
    const double ratio = fmax(after, 0) / products;
    const double target = fmax(ratio * ratio * ratio, 1e-4) * products / s->pairs;
    wf_newton_correct(s, target, room);
    memcpy(s->dz, s->rhs, (size_t)s->Q * sizeof *s->dz);
    wf_ipm_backsolve(s, s->dz);
    const wf_ipm_direction full = wf_newton_expand(s, target, 1, room);
    /* Back from the bounds by 5 % where the predictor saw little progress, by 0.1 % at the end. */
    const double back = 1 - fmin(0.05, fmax(1e-3, 0.1 * ratio));
    const double primal = full.primal < 1 ? back * full.primal : 1;
    const double dual = full.dual < 1 ? back * full.dual : 1;
    if (!isfinite(full.sums[0] + full.sums[1]) || fmax(primal, dual) < 1e-12) {
        return 0;
    }
    const double rest =
        products + dual * full.sums[0] + primal * full.sums[1] + primal * dual * full.sums[2];
    move(s, primal, dual, fmax(rest, 0) / s->pairs, room->e);
    return 1;
}

/* Until the point is good, or rounding lets it become no better. Each iteration leaves the factored
 * matrix of its point, which wf_ipm_bound uses. */
static wf_status iterate(wf_ipm_state *s, int (*stop)(void *), void *context,
                         const wf_ipm_room *room)
{
    double best = INFINITY, size_g = 1;
    int waited = 0;
    for (int k = 0; k < s->Q; k++) {
        size_g = fmax(size_g, fabs(s->g[k]));
    }
    for (int iteration = 0; iteration < MOST_ITERATIONS; iteration++) {
        if (stop && stop(context)) {
            return WF_INTERRUPTED;
        }
        double value;
        const double products = complementarity(s, &value);
        wf_newton_matrix(s, room);
        wf_ipm_factor(s);
        if (isnan(products)) {
            return WF_OK;
        }
        if (is_good(s, products, fmax(fabs(value) * s->problem->tol, s->noise), size_g)) {
            return WF_OK;
        }
        waited = products < 0.9 * best ? 0 : waited + 1;
        best = fmin(best, products);
        if (waited > PATIENCE || !step(s, products, room)) {
            return WF_OK;
        }
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
    assert(problem->parts == 1 || problem->parts == 2);
    assert(problem->parts == 2 || (problem->n_groups == 0 && problem->difference.n == 0));
    assert(problem->n_groups == 0 || problem->eta > 0);
    if (problem->q == 0) {
        result->primal = result->bound = value_without_unknowns(problem);
        return WF_OK;
    }
    wf_ipm_state s = {
        .problem = problem, .q = (int)problem->q, .Q = (int)(problem->parts * problem->q)};
    s.bound = -INFINITY;
    wf_ipm_room room;
    wf_status status = wf_ipm_allocate(&s, &room);
    if (status != WF_OK) {
        return status;
    }
    wf_ipm_start(&s, &room);
    status = iterate(&s, stop, context, &room);
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
