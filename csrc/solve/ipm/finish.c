/* The end of the interior point method: a bound that holds, and a vertex.
 *
 * By duality F(z) >= -sum a y - sum lambda c for any multipliers with |a| <= 1, or lambda of their
 * hinge, 0 <= lambda <= eta, and zeta = g + sum E'(a x) + sum E'(lambda u) = 0 (newton.c has the
 * notation). Those of an iterate have zeta near 0 only; they are made to balance in a few rounds,
 * of which the best counts. There is an optimum at a vertex, where Q rows and hinges that are
 * independent hold with equality. */
#include "solve/ipm/finish.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/blas.h"
#include "solve/ipm/normal.h"

/* sum |x'v - y| over a block; of difference rows into `total` by hinge. */
static double block_sum(const wf_ipm_state *s, const wf_block *b, const double *z, double *total)
{
    double sum = 0, t[WF_IPM_CHUNK];
    wf_ipm_unknowns(s, b->kind, z, s->v);
    for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
        const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
        wf_ipm_times(s, b, i0, n, s->v, t);
        for (ptrdiff_t i = 0; i < n; i++) {
            const double e = fabs(t[i] - b->y[i0 + i]);
            if (b->kind == WF_IPM_DIFFERENCE) {
                total[b->group[i0 + i]] += e;
            } else {
                sum += e;
            }
        }
    }
    return sum;
}

double wf_ipm_primal(const wf_ipm_state *s, const double *z)
{
    const wf_hinges *h = &s->hinge;
    double value = 0;
    for (int k = 0; k < s->Q; k++) {
        value += s->g[k] * z[k];
    }
    if (h->n) {
        memset(h->total, 0, (size_t)h->n * sizeof *h->total);
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        value += block_sum(s, &s->block[blk], z, h->total);
    }
    for (ptrdiff_t j = 0; j < h->n; j++) {
        double excess = h->total[j] - h->c[j];
        for (int k = 0; k < s->q; k++) {
            excess += h->u[j * s->q + k] * z[s->q + k]; /* the difference: see wf_ipm_unknowns */
        }
        value += s->problem->eta * fmax(excess, 0);
    }
    return value;
}

static double clip(double value, double limit)
{
    return value > limit ? limit : value < -limit ? -limit : value;
}

/* Trial multipliers, da of rows and dt of hinges, are clipped; zeta of these.
 * Returns - da'y - dt'c. */
static double balance(wf_ipm_state *s)
{
    const int q = s->q;
    wf_hinges *h = &s->hinge;
    double value = 0, *sum = s->v;
    memcpy(s->zeta, s->g, (size_t)s->Q * sizeof *s->zeta);
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->dt[j] = h->dt[j] < 0 ? 0 : fmin(h->dt[j], s->problem->eta);
        value -= h->dt[j] * h->c[j];
        for (int k = 0; k < q; k++) {
            sum[k] = h->dt[j] * h->u[j * q + k];
        }
        wf_ipm_scatter(s, WF_IPM_DIFFERENCE, sum, s->zeta);
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        memset(sum, 0, (size_t)q * sizeof *sum);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            for (ptrdiff_t i = i0; i < i0 + n; i++) {
                b->rows.da[i] =
                    clip(b->rows.da[i], b->kind == WF_IPM_DIFFERENCE ? h->dt[b->group[i]] : 1);
            }
            wf_ipm_times_t(s, b, i0, n, b->rows.da + i0, sum);
            value -= wf_k->dot(n, b->rows.da + i0, b->y + i0);
        }
        wf_ipm_scatter(s, b->kind, sum, s->zeta);
    }
    return value;
}

/* What the imbalance zeta, which is of rounding size, can take from the bound, |zeta'z*|. How far a
 * minimiser z* can be is an estimate, no proof: no further than z is, or than the whole of F goes
 * when every (whitened) row moves by a twentieth of it on average (docs/solver.md, section 5). */
static double doubt(const wf_ipm_state *s, double primal)
{
    double rows = 1, total = 0;
    for (int blk = 0; blk < s->problem->parts; blk++) {
        rows += (double)s->block[blk].n;
    }
    const double reach = 10 + 20 * fabs(primal + s->constant) / rows;
    for (int k = 0; k < s->Q; k++) {
        total += 2 * fabs(s->zeta[k]) * (fabs(s->z[k]) + reach);
    }
    return total;
}

/* Spreads what is missing over the rows whose multipliers have room: a Newton step for zeta alone,
 * with the last matrix. */
static void rebalance_all(wf_ipm_state *s)
{
    wf_hinges *h = &s->hinge;
    const int q = s->q;
    double t[WF_IPM_CHUNK], *v = s->v;
    for (int k = 0; k < s->Q; k++) {
        s->dz[k] = -s->zeta[k];
    }
    wf_ipm_backsolve(s, s->dz);
    if (h->n) {
        wf_ipm_unknowns(s, WF_IPM_DIFFERENCE, s->dz, v);
    }
    for (ptrdiff_t j = 0; j < h->n; j++) {
        double moved = 0;
        for (int k = 0; k < q; k++) {
            moved += s->uhat[j * q + k] * v[k];
        }
        h->dlambda[j] = moved / h->omega[j];
        h->dt[j] += h->dlambda[j];
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        wf_ipm_unknowns(s, b->kind, s->dz, v);
        for (ptrdiff_t i0 = 0; i0 < b->n; i0 += WF_IPM_CHUNK) {
            const ptrdiff_t n = b->n - i0 < WF_IPM_CHUNK ? b->n - i0 : WF_IPM_CHUNK;
            wf_ipm_times(s, b, i0, n, v, t);
            for (ptrdiff_t i = i0; i < i0 + n; i++) {
                const double alpha = b->rows.rp[i] / b->rows.sp[i],
                             gamma = b->rows.rm[i] / b->rows.sm[i];
                const double dlambda = b->kind == WF_IPM_DIFFERENCE ? h->dlambda[b->group[i]] : 0;
                const double change = (t[i - i0] + (alpha - gamma) * dlambda) / (alpha + gamma);
                b->rows.da[i] += isfinite(change) ? change : 0;
            }
        }
    }
}

/* Puts what is missing on the rows of the basis alone: exact, where the basis is the optimum's. */
static void rebalance_basis(wf_ipm_state *s, double *matrix, int *pivots)
{
    wf_hinges *h = &s->hinge;
    const int Q = s->Q, one = 1;
    for (int k = 0; k < Q; k++) {
        s->dz[k] = -s->zeta[k];
        for (int l = 0; l < Q; l++) {
            matrix[k * Q + l] = s->basis[l * Q + k];
        }
    }
    int info;
    WF_BLAS(dgesv_)(&Q, &one, matrix, &Q, pivots, s->dz, &Q, &info);
    for (int k = 0; k < Q && info == 0; k++) {
        const double change = s->dz[k] / s->basis_size[k];
        const wf_candidate *row = &s->basis_row[k];
        if (row->block >= 0) {
            s->block[row->block].rows.da[row->index] += change;
            continue;
        }
        h->dt[row->index] += change;
        const wf_block *b = &s->block[s->n_blocks - 1]; /* its rows' multipliers are at its own */
        for (ptrdiff_t i = 0; b->kind == WF_IPM_DIFFERENCE && i < b->n; i++) {
            if (b->group[i] == row->index) {
                b->rows.da[i] += b->rows.rp[i] > b->rows.rm[i] ? change : -change;
            }
        }
    }
}

double wf_ipm_bound(wf_ipm_state *s, double primal)
{
    /* Each round makes zeta smaller, by orders at first; so many take it to rounding size. */
    enum { ROUNDS = 4, BASIS_ROUNDS = 2 };
    wf_hinges *h = &s->hinge;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        h->dt[j] = h->lambda[j];
    }
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        for (ptrdiff_t i = 0; i < b->n; i++) {
            b->rows.da[i] = 0.5 * (b->rows.sm[i] - b->rows.sp[i]);
        }
    }
    double best = -INFINITY;
    double *matrix = s->basis_row ? malloc((size_t)s->Q * (size_t)s->Q * sizeof *matrix) : NULL;
    int *pivots = s->basis_row ? malloc((size_t)s->Q * sizeof *pivots) : NULL;
    /* Without memory for the basis the bound is just less tight. */
    const int rounds = ROUNDS - 1 + (matrix && pivots ? BASIS_ROUNDS : 0);
    for (int round = 0; round <= rounds; round++) {
        const double value = balance(s);
        best = fmax(best, value - doubt(s, primal));
        if (round < ROUNDS - 1) {
            rebalance_all(s);
        } else if (round < rounds) {
            rebalance_basis(s, matrix, pivots);
        }
    }
    free(matrix);
    free(pivots);
    return best;
}

/* -- the vertex -- */

static int by_room(const void *left, const void *right)
{
    const wf_candidate *a = left, *b = right;
    if (a->room != b->room) {
        return a->room < b->room ? 1 : -1;
    }
    if (a->block != b->block) {
        return a->block - b->block;
    }
    return a->index < b->index ? -1 : a->index > b->index;
}

/* Keeps the `most` roomiest in a heap with the least roomy on top. */
static void offer(wf_candidate *heap, ptrdiff_t *count, ptrdiff_t most, wf_candidate one)
{
    ptrdiff_t at;
    if (*count < most) {
        at = (*count)++;
        while (at > 0 && by_room(&heap[(at - 1) / 2], &one) < 0) {
            heap[at] = heap[(at - 1) / 2];
            at = (at - 1) / 2;
        }
        heap[at] = one;
        return;
    }
    if (by_room(&heap[0], &one) <= 0) {
        return;
    }
    for (at = 0;;) {
        ptrdiff_t child = 2 * at + 1;
        if (child >= most) {
            break;
        }
        if (child + 1 < most && by_room(&heap[child], &heap[child + 1]) < 0) {
            child++;
        }
        if (by_room(&heap[child], &one) <= 0) {
            break;
        }
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = one;
}

/* The equation of a candidate over all unknowns; returns its right side. */
static double equation(const wf_ipm_state *s, const wf_candidate *one, double *row)
{
    const int q = s->q;
    double *x = s->v;
    memset(row, 0, (size_t)s->Q * sizeof *row);
    if (one->block >= 0) {
        const wf_block *b = &s->block[one->block];
        for (int k = 0; k < q; k++) {
            x[k] = b->x[k * b->n + one->index];
        }
        wf_ipm_scatter(s, b->kind, x, row);
        return b->y[one->index];
    }
    const wf_hinges *h = &s->hinge;
    const wf_block *b = &s->block[s->n_blocks - 1];
    double right = h->c[one->index];
    memcpy(x, h->u + one->index * q, (size_t)q * sizeof *x);
    for (ptrdiff_t i = 0; b->kind == WF_IPM_DIFFERENCE && i < b->n; i++) {
        if (b->group[i] == one->index) {
            const double sign = b->rows.rp[i] > b->rows.rm[i] ? 1 : -1;
            for (int k = 0; k < q; k++) {
                x[k] += sign * b->x[k * b->n + i];
            }
            right += sign * b->y[i];
        }
    }
    wf_ipm_scatter(s, WF_IPM_DIFFERENCE, x, row);
    return right;
}

/* The roomiest `most` of every block and of the hinges: one kind alone may fill any list and yet
 * not span the space. */
static ptrdiff_t collect(const wf_ipm_state *s, wf_candidate *list, ptrdiff_t most)
{
    ptrdiff_t total = 0;
    const wf_hinges *h = &s->hinge;
    for (int blk = 0; blk < s->n_blocks; blk++) {
        const wf_block *b = &s->block[blk];
        ptrdiff_t count = 0;
        for (ptrdiff_t i = 0; i < b->n; i++) {
            const double limit = b->kind == WF_IPM_DIFFERENCE ? h->lambda[b->group[i]] : 1;
            offer(list + total, &count, most,
                  (wf_candidate){fmin(b->rows.sp[i], b->rows.sm[i]) / limit, blk, i});
        }
        total += count;
    }
    ptrdiff_t count = 0;
    for (ptrdiff_t j = 0; j < h->n; j++) {
        offer(list + total, &count, most,
              (wf_candidate){2 * fmin(h->lambda[j], h->rest[j]) / s->problem->eta, -1, j});
    }
    total += count;
    qsort(list, (size_t)total, sizeof *list, by_room);
    return total;
}

/* Summed from the first to the last, as no kernel does. */
static double product(int n, const double *a, const double *b)
{
    double sum = 0;
    for (int k = 0; k < n; k++) {
        sum += a[k] * b[k];
    }
    return sum;
}

/* Q independent ones of the equations of a list, each divided by its size: into `matrix` row by row
 * (column-major), `right` and basis_size, and to the head of the list. Gram-Schmidt, done twice as
 * once leaves what rounding makes of near dependence; an equation of which not more than 1e-8 is
 * left depends on those before it. `room` holds Q x Q + 2 Q numbers. Returns how many there are. */
static int choose_equations(wf_ipm_state *s, wf_candidate *list, ptrdiff_t count, double *matrix,
                            double *right, double *room)
{
    const int Q = s->Q;
    double *basis = room, *row = basis + Q * Q, *rest = row + Q;
    int chosen = 0;
    for (ptrdiff_t i = 0; i < count && chosen < Q; i++) {
        const double side = equation(s, &list[i], row);
        memcpy(rest, row, (size_t)Q * sizeof *rest);
        for (int twice = 0; twice < 2; twice++) {
            for (int j = 0; j < chosen; j++) {
                const double along = product(Q, rest, basis + j * Q);
                for (int k = 0; k < Q; k++) {
                    rest[k] -= along * basis[j * Q + k];
                }
            }
        }
        const double before = product(Q, row, row), after = product(Q, rest, rest);
        if (!(after > 1e-16 * before) || !(before > 0)) {
            continue;
        }
        for (int k = 0; k < Q; k++) {
            basis[chosen * Q + k] = rest[k] / sqrt(after);
            matrix[k * Q + chosen] = row[k] / sqrt(before);
        }
        s->basis_size[chosen] = sqrt(before);
        list[chosen] = list[i];
        right[chosen++] = side / sqrt(before);
    }
    return chosen;
}

wf_status wf_ipm_polish(wf_ipm_state *s)
{
    assert(!s->basis_row);
    const int Q = s->Q;
    const size_t size = (size_t)Q;
    const ptrdiff_t most = 8 * (ptrdiff_t)Q + 64; /* eight times what is needed, and some for few */
    wf_status status = WF_NO_MEMORY;
    wf_candidate *list = malloc((size_t)(4 * most) * sizeof *list); /* three blocks, the hinges */
    double *matrix = malloc((2 * size * size + 3 * size) * sizeof *matrix);
    int *pivots = malloc(size * sizeof *pivots);
    if (!list || !matrix || !pivots) {
        goto done;
    }
    status = WF_OK;
    double *vertex = matrix + size * size;
    const ptrdiff_t count = collect(s, list, most);
    if (choose_equations(s, list, count, matrix, vertex, vertex + Q) < Q) {
        goto done;
    }
    memcpy(s->basis, matrix, size * size * sizeof *matrix);
    s->basis_row = list;
    const int one = 1;
    int info;
    WF_BLAS(dgesv_)(&Q, &one, matrix, &Q, pivots, vertex, &Q, &info);
    if (info == 0 && wf_ipm_primal(s, vertex) <= wf_ipm_primal(s, s->z)) {
        memcpy(s->z, vertex, size * sizeof *vertex);
    }
done:
    if (list != s->basis_row) {
        free(list);
    }
    free(matrix);
    free(pivots);
    return status;
}
