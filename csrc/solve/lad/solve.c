/* After a band pass: a unit on what was kept.
 *
 *   G(z) = sum over kept rows of |r - u'z|  +  sum over dropped rows of (|r| - sign(r) u'z)
 *
 * with the hinge in the same way, is the unit's value at a step z from the centre with dropped rows
 * held to their signs. As |a| >= sign(r) a, G is nowhere above that value, and min G bounds its
 * minimum from below; where no dropped row has changed its sign on the way there, both are the same
 * and this is the minimum (preprocessing in Portnoy and Koenker, The Gaussian hare and the
 * Laplacian tortoise, 1997, doi:10.1214/ss/1030037960). */
#include "solve/lad/solve.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/ipm/ipm.h"
#include "solve/lad/whiten.h"

/* Sum of |r| of the unit's parts at its centre, from this pass: exact. Cells hold sums of |r|
 * beside their sums. */
static double errors_at_centre(const wf_fit *fit, const wf_unit *unit)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    double value = 0;
    for (int part = 0; part < unit->parts; part++) {
        const wf_band *band = &unit->joined[part];
        ptrdiff_t single = band->n;
        for (ptrdiff_t at = 0; at < WF_LAD_CELLS && band->cell; at++) {
            const double *cell = band->cell + at * (rank + WF_LAD_CELL_EXTRA);
            value += cell[rank + 1];
            single -= cell[rank + 2] > 0;
        }
        value += band->dropped + wf_k->sum_abs(single, band->kept + band->capacity * rank);
    }
    return value;
}

/* N m F there. */
static double value_at_centre(const wf_fit *fit, const wf_unit *unit)
{
    double value = errors_at_centre(fit, unit);
    for (ptrdiff_t j = 0; j < fit->options.n_groups && unit->parts == 2; j++) {
        const double excess =
            unit->joined[WF_LAD_DIFFERENCE].whole[j] - fit->options.first_update[j];
        value += wf_lad_of(fit)->eta * fmax(excess, 0);
    }
    return value;
}

static double norm(const double *z, const double *minus, ptrdiff_t n)
{
    double sum = 0;
    for (ptrdiff_t k = 0; k < n; k++) {
        const double d = z[k] - (minus ? minus[k] : 0);
        sum += d * d;
    }
    return sqrt(sum);
}

/* 1 when F equals the solved problem's value at the step z: no row that was dropped can have
 * changed its sign. */
static int step_is_exact(const wf_fit *fit, const wf_unit *unit, const double *z, double *length)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    int exact = 1;
    for (int kind = 0; kind < WF_LAD_KINDS; kind++) {
        if (!wf_unit_has(unit, kind)) {
            continue;
        }
        length[kind] =
            kind == WF_LAD_DIFFERENCE ? norm(z, z + rank, rank) : norm(z + kind * rank, NULL, rank);
        if (wf_unit_bands(unit, kind)) {
            exact = exact && !unit->joined[kind].spilled && !unit->joined[kind].cell &&
                    length[kind] <= unit->kappa[kind] * (1 - 1e-9);
        }
    }
    for (ptrdiff_t j = 0; j < fit->options.n_groups && unit->parts == 2 && !unit->watched; j++) {
        const wf_band *band = &unit->joined[WF_LAD_DIFFERENCE]; /* slack there, and all the way? */
        exact = exact && band->whole[j] + length[WF_LAD_DIFFERENCE] * band->size[j] <=
                             fit->options.first_update[j];
    }
    return exact;
}

/* Where the next pass looks, and how wide. A width grows fast where the band was too narrow to hold
 * the problem (by 8) or its solution (by 2, or to half as much again as the step), since a pass
 * costs more than rows do; it shrinks to what fits the memory, and after an exact step that was no
 * proof yet to four times that step. */
static void next_band(const wf_fit *fit, wf_unit *unit, double *z, const double *length, int exact,
                      double value_here, double bound_here)
{
    const ptrdiff_t p = fit->options.p;
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    const int narrow = !(bound_here > -value_here); /* kept rows did not hold the linear term */
    const double widest = fmax(fmax(unit->kappa[0], unit->kappa[1]), unit->kappa[2]);
    /* A step far out of the band follows rows whose signs are no longer theirs. */
    double stretch = 1;
    for (int part = 0; part < unit->parts; part++) {
        stretch = fmin(stretch, 3 * widest / fmax(length[part], 1e-300));
    }
    for (int part = 0; part < unit->parts && !narrow; part++) {
        double *step = z + part * rank;
        wf_k->axpy(rank, stretch - 1, step, step);
        wf_unwhiten(fit, step, unit->centre + part * (p + 1));
    }
    for (int kind = 0; kind < WF_LAD_KINDS; kind++) {
        if (!wf_unit_has(unit, kind)) {
            continue;
        }
        const wf_band *band = &unit->joined[kind];
        if (narrow) {
            unit->kappa[kind] = fmax(8 * unit->kappa[kind], widest);
        } else if (band->spilled) {
            unit->kappa[kind] *=
                fmin(0.5, 0.5 * (double)(band->n + 1) / (double)(band->in_band + 1));
            unit->cells = 1;
        } else if (exact) {
            unit->kappa[kind] = fmax(4 * length[kind], 0.25 * unit->kappa[kind]);
        } else if (length[kind] > unit->kappa[kind]) {
            unit->kappa[kind] = fmax(2 * unit->kappa[kind], 1.5 * fmin(length[kind], widest));
        }
    }
    double excess = 0;
    for (ptrdiff_t j = 0; j < fit->options.n_groups && unit->parts == 2; j++) {
        excess += fmax(unit->joined[WF_LAD_DIFFERENCE].whole[j] - fit->options.first_update[j], 0);
    }
    unit->watched |= wf_hinge_counts(fit, excess, value_here);
}

/* Parts `first` to `first + parts` of the unit on their kept rows, with the hinge where both are
 * there and its rows are banded. Adds to the solution's value and bound. */
static wf_status solve_parts(const wf_fit *fit, const wf_unit *unit, int first, int parts,
                             double *z, wf_ipm_result *sum, int (*stop)(void *), void *context)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    const ptrdiff_t S = parts == 2 ? fit->options.n_groups : 0;
    double *g = calloc((size_t)(parts * rank + S + 1), sizeof *g);
    if (!g) {
        return WF_NO_MEMORY;
    }
    double *c = g + parts * rank;
    wf_ipm problem = {.parts = parts,
                      .q = rank,
                      .eta = wf_lad_of(fit)->eta,
                      .g = g,
                      .c = c,
                      .n_groups = S,
                      .tol = fit->options.tol,
                      .noise = unit->noise,
                      .polish = 1};
    for (int part = 0; part < parts; part++) {
        const wf_band *band = &unit->joined[first + part];
        problem.part[part] = (wf_rows){band->n, band->kept, band->kept + band->capacity * rank};
        memcpy(g + part * rank, band->g, (size_t)rank * sizeof *g);
        problem.constant += band->dropped;
    }
    if (S) {
        const wf_band *band = &unit->joined[WF_LAD_DIFFERENCE];
        problem.difference = (wf_rows){band->n, band->kept, band->kept + band->capacity * rank};
        problem.group = band->group;
        problem.u = band->g;
        double moved = 0;
        for (ptrdiff_t j = 0; j < S; j++) {
            moved += band->whole[j];
        }
        const double reach = wf_reach(errors_at_centre(fit, unit), moved);
        for (ptrdiff_t j = 0; j < S; j++) {
            c[j] = fmin(fit->options.first_update[j], reach) - band->total[j];
        }
    }
    wf_ipm_result result = {.z = z + first * rank};
    const wf_status status = wf_ipm_solve(&problem, stop, context, &result);
    sum->primal += result.primal;
    sum->bound += result.bound;
    free(g);
    return status;
}

wf_status wf_band_solve(wf_fit *fit, wf_unit *unit, int (*stop)(void *), void *context)
{
    const ptrdiff_t p = fit->options.p;
    assert(wf_lad_of(fit)->phase == WF_LAD_BAND && unit->state == WF_UNIT_ACTIVE);
    double *z = calloc((size_t)(unit->parts * wf_lad_of(fit)->rank + 1), sizeof *z);
    if (!z) {
        return WF_NO_MEMORY;
    }
    wf_ipm_result result = {.z = z};
    wf_status status = WF_OK;
    if (unit->parts == 2 && unit->watched) {
        status = solve_parts(fit, unit, 0, 2, z, &result, stop, context);
    } else {
        for (int part = 0; part < unit->parts && status == WF_OK; part++) {
            status = solve_parts(fit, unit, part, 1, z, &result, stop, context);
        }
    }
    if (status == WF_OK) {
        const size_t size = (size_t)(unit->parts * (p + 1)) * sizeof *unit->best;
        const double here = value_at_centre(fit, unit);
        if (here < unit->value) {
            unit->value = here;
            memcpy(unit->best, unit->centre, size);
        }
        unit->bound = fmax(unit->bound, result.bound);
        double length[WF_LAD_KINDS] = {0};
        const int exact = step_is_exact(fit, unit, z, length);
        next_band(fit, unit, z, length, exact, here, result.bound);
        if (exact && result.primal < unit->value) {
            unit->value = result.primal;
            memcpy(unit->best, unit->centre, size);
        }
        const double enough = fmax(fit->options.tol * unit->bound - unit->noise, unit->noise);
        unit->state = unit->value - unit->bound <= enough ? WF_UNIT_DONE : WF_UNIT_WAITING;
    }
    free(z);
    return status;
}
