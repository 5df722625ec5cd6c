/* The sample: its rows, and a unit on them, which gives its centre and the widths of its bands, or
 * all there is to know where the sample is everything.
 *
 * One row of every `stride` is taken, at a scattered offset: which rows depends on N alone, so
 * processes and threads agree without a word, and data that repeat with a period do not meet it. */
#include "solve/lad/sample.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/ipm/ipm.h"
#include "solve/lad/whiten.h"

enum { DIRECT_ROWS = 1 << 13 }; /* up to here a sample saves nothing over the whole problem */

/* -- its rows -- */

/* n = (3 q N)^(2/3) makes the band that it leaves, 6 q N / sqrt(n) rows (wf_band_share), twice as
 * large as itself: about where both cost the same, as the band starts centred. At least 50 rows for
 * each unknown, for a centre worth the name, and at most what memory allows. */
ptrdiff_t wf_sample_rows(const wf_fit *fit)
{
    const double n = (double)fit->options.n_rows, q = (double)fit->options.p + 1;
    const double columns = (double)(fit->options.p + fit->options.m);
    double rows = pow(3 * q * n, 2.0 / 3.0);
    rows = fmin(fmin(rows, WF_LAD_SAMPLE_BYTES / 8 / columns), 2 * WF_LAD_SOLVER_ROWS);
    rows = fmax(rows, 50 * q);
    return fit->options.n_rows <= DIRECT_ROWS || rows > 0.5 * n ? fit->options.n_rows
                                                                : (ptrdiff_t)rows;
}

wf_status wf_sample_begin(wf_fit *fit, ptrdiff_t stride)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    assert(stride > 0 && stride <= fit->options.n_rows && !s->sample);
    s->phase = WF_LAD_SAMPLE;
    s->stride = stride;
    s->n_sample = (fit->options.n_rows + stride - 1) / stride;
    s->sample = malloc((size_t)s->n_sample * (size_t)columns * sizeof *s->sample);
    s->sample_group = malloc((size_t)(s->hinged ? s->n_sample : 1) * sizeof *s->sample_group);
    s->taken = calloc((size_t)s->n_sample, 1);
    return s->sample && s->sample_group && s->taken ? WF_OK : WF_NO_MEMORY;
}

void wf_sample_end(wf_lad *s)
{
    free(s->sample);
    free(s->sample_group);
    free(s->taken);
    s->sample = NULL;
    s->sample_group = NULL;
    s->taken = NULL;
}

/* splitmix64 (Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014,
 * doi:10.1145/2660193.2660195). */
static uint64_t scatter(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

wf_status wf_sample_visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    (void)lane;
    (void)room;
    wf_fit *fit = context;
    wf_lad *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m, D = s->stride,
                    first = rows->start + s->segment_start;
    for (ptrdiff_t k = first / D; k * D < first + rows->n; k++) {
        const ptrdiff_t width = fit->options.n_rows - k * D < D ? fit->options.n_rows - k * D : D;
        const ptrdiff_t row =
            k * D + (ptrdiff_t)(D > 1 ? scatter((uint64_t)k) % (uint64_t)width : 0) - first;
        if (row < 0 || row >= rows->n) {
            continue;
        }
        for (ptrdiff_t c = 0; c < columns; c++) {
            s->sample[c * s->n_sample + k] = rows->column[c][row];
        }
        s->taken[k] = 1;
        if (s->hinged) {
            s->sample_group[k] = (int32_t)rows->group[row];
        }
    }
    return WF_OK;
}

void wf_sample_sums(wf_fit *fit)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    for (ptrdiff_t c = 0; c < columns; c++) {
        s->sums[c] = wf_k->sum_abs(s->n_sample, s->sample + c * s->n_sample) * (double)s->stride;
    }
    s->sums[columns] = (double)fit->options.n_rows;
}

/* -- a unit on the sample -- */

/* N m F of the unit at b over the sample as it stands, from the columns themselves; sums of
 * |difference| by hinge. */
static double value_at(const wf_fit *fit, const wf_unit *unit, const double *b, double *total,
                       const double **x, double *room)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p, n = s->n_sample;
    double *difference = room, *r = difference + p + 1;
    double value = 0;
    for (ptrdiff_t j = 0; j < fit->options.n_groups; j++) {
        total[j] = 0;
    }
    for (ptrdiff_t k = 0; k <= p; k++) {
        difference[k] = unit->parts == 2 ? b[k] - b[p + 1 + k] : 0;
    }
    for (ptrdiff_t i0 = 0; i0 < n; i0 += WF_SCAN_ROWS) {
        const ptrdiff_t count = n - i0 < WF_SCAN_ROWS ? n - i0 : WF_SCAN_ROWS;
        for (ptrdiff_t k = 0; k < p; k++) {
            x[k] = s->sample + k * n + i0;
        }
        for (int part = 0; part < unit->parts; part++) {
            const double *y = s->sample + (p + unit->target + part) * n + i0;
            wf_k->residual(count, p, x, y, b + part * (p + 1), r);
            value += wf_k->sum_abs(count, r);
        }
        if (unit->parts == 2) {
            wf_k->residual(count, p, x, NULL, difference, r);
            for (ptrdiff_t i = 0; i < count; i++) {
                total[s->sample_group[i0 + i]] += fabs(r[i]);
            }
        }
    }
    return value;
}

/* The k-th smallest of n values, which it reorders (Hoare, Algorithm 65: Find, 1961,
 * doi:10.1145/366622.366647, with the middle one as pivot). */
static double select_kth(double *value, ptrdiff_t n, ptrdiff_t k)
{
    assert(k >= 0 && k < n);
    ptrdiff_t low = 0, high = n - 1;
    while (low < high) {
        const double pivot = value[low + (high - low) / 2];
        ptrdiff_t i = low, j = high;
        while (i <= j) {
            while (value[i] < pivot) {
                i++;
            }
            while (value[j] > pivot) {
                j--;
            }
            if (i <= j) {
                const double swap = value[i];
                value[i++] = value[j];
                value[j--] = swap;
            }
        }
        if (k <= j) {
            high = j;
        } else if (k >= i) {
            low = i;
        } else {
            break;
        }
    }
    return value[k];
}

/* kappa: of the sample's |r| / h, the quantile that the next pass should keep. r comes in `ratio`,
 * infinite where a row is not to count. */
static double band_width(const wf_fit *fit, const double *u, double *ratio)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t n = s->n_sample;
    ptrdiff_t used = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        double h2 = 0;
        for (ptrdiff_t t = 0; t < s->rank; t++) {
            h2 += u[t * n + i] * u[t * n + i];
        }
        if (h2 > 0) {
            ratio[used++] = fabs(ratio[i]) / sqrt(h2);
            used -= isinf(ratio[used - 1]) != 0;
        }
    }
    return used ? select_kth(ratio, used, (ptrdiff_t)(wf_band_share(fit) * (double)(used - 1))) : 0;
}

/* Residuals of one kind of rows at the unit's centre, over the sample. */
static void residuals_of(const wf_fit *fit, const wf_unit *unit, int kind, double *r)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p, n = s->n_sample;
    memset(r, 0, (size_t)n * sizeof *r);
    for (int part = 0; part < unit->parts; part++) {
        const double sign = kind != WF_LAD_DIFFERENCE ? kind == part : part ? -1 : 1;
        const double *b = unit->centre + part * (p + 1);
        for (ptrdiff_t k = 0; k < p; k++) {
            wf_k->axpy(n, -sign * b[k], s->sample + k * n, r);
        }
        if (kind == part) {
            wf_k->axpy(n, 1, s->sample + (p + unit->target + part) * n, r);
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            r[i] -= sign * b[p];
        }
    }
}

/* The widths of the bands, and whether unmoved weights (y equal to the last input, inputs equal to
 * each other) are gathered in cells. They have no place in the quantile: they may be most rows, all
 * with r near 0. No band is narrower than a small share of what rounding does to a residual. */
static void set_widths(const wf_fit *fit, wf_unit *unit, const double *u, double *r)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t n = s->n_sample;
    for (int kind = 0; kind < WF_LAD_KINDS; kind++) {
        if (!wf_unit_has(unit, kind)) {
            continue;
        }
        residuals_of(fit, unit, kind, r);
        ptrdiff_t unmoved = 0;
        for (ptrdiff_t i = 0; i < n; i++) {
            if (wf_unmoved(fit, unit, kind, s->sample + i, n)) {
                unmoved++;
                r[i] = INFINITY;
            }
        }
        unit->cells |= wf_use_cells(fit, unit, (double)unmoved / (double)n);
        unit->kappa[kind] =
            fmax(band_width(fit, u, r), 1e-6 * unit->noise / (double)fit->options.n_rows);
    }
}

/* What solving a unit on the sample works with. */
typedef struct {
    wf_unit *unit;
    const double *u;    /* n x rank: whitened sample */
    const double *zero; /* n */
    const double *c;    /* n_groups: first updates, scaled to the sample */
    double *cap;        /* n_groups: the same, no larger than the reach */
    double reach;       /* no last update is larger at the minimum */
    double *z;          /* parts x rank */
    double *total;      /* n_groups: sums of |difference| at the centre */
    const double **x;   /* p: scratch, and so is room */
    double *room;
} sample_problem;

/* Parts `first` to `first + parts` of the unit, with the hinge where both are there; adds the
 * solution to the centre. */
static wf_status solve_parts(const wf_fit *fit, const sample_problem *sample, int first, int parts,
                             double *bound, int (*stop)(void *), void *context)
{
    const wf_lad *s = fit->solver;
    wf_unit *unit = sample->unit;
    const ptrdiff_t p = fit->options.p, n = s->n_sample, S = parts == 2 ? fit->options.n_groups : 0;
    wf_ipm problem = {
        .parts = parts, .q = s->rank, .group = s->sample_group, .n_groups = S, .c = sample->cap};
    for (int part = 0; part < parts; part++) {
        const double *y = s->sample + (p + unit->target + first + part) * n;
        problem.part[part] = (wf_rows){n, sample->u, y};
    }
    for (ptrdiff_t j = 0; j < S; j++) {
        sample->cap[j] = fmin(sample->c[j], sample->reach);
    }
    problem.difference = (wf_rows){S ? n : 0, sample->u, sample->zero};
    problem.eta = s->eta;
    /* A sample's own error is far above 1e-6 of F, so more digits of its solution are worth
     * nothing. */
    problem.tol = s->stride == 1 ? fit->options.tol : 1e-6;
    problem.noise = wf_unit_noise(fit, unit, unit->centre);
    problem.polish = 1;
    wf_ipm_result result = {.z = sample->z};
    const wf_status status = wf_ipm_solve(&problem, stop, context, &result);
    for (int part = 0; part < parts && status == WF_OK; part++) {
        double *b = unit->centre + (first + part) * (p + 1);
        memset(b, 0, (size_t)(p + 1) * sizeof *b);
        wf_unwhiten(fit, sample->z + part * s->rank, b);
    }
    *bound += result.bound;
    return status;
}

/* Each part alone, which is the optimum if it leaves every hinge slack; else both. Value at the
 * centre, and bound. */
static wf_status solve_sample(const wf_fit *fit, sample_problem *sample, double *value,
                              double *bound, int (*stop)(void *), void *context)
{
    wf_unit *unit = sample->unit;
    wf_status status = WF_OK;
    *bound = 0;
    for (int part = 0; part < unit->parts && status == WF_OK; part++) {
        status = solve_parts(fit, sample, part, 1, bound, stop, context);
    }
    for (int joint = 0; joint < unit->parts && status == WF_OK; joint++) {
        *value = value_at(fit, unit, unit->centre, sample->total, sample->x, sample->room);
        double excess = 0, moved = 0;
        for (ptrdiff_t j = 0; unit->parts == 2 && j < fit->options.n_groups; j++) {
            moved += sample->total[j];
            excess += fmax(sample->total[j] - sample->c[j], 0);
        }
        sample->reach = wf_reach(*value, moved);
        *value += wf_lad_of(fit)->eta * excess;
        const int counts = wf_hinge_counts(fit, excess, *value);
        unit->watched |= counts;
        if (joint || !counts) {
            break;
        }
        *bound = 0;
        status = solve_parts(fit, sample, 0, unit->parts, bound, stop, context);
    }
    return status;
}

wf_status wf_sample_solve(wf_fit *fit, wf_unit *unit, int (*stop)(void *), void *context)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p, n = s->n_sample, rank = s->rank, S = fit->options.n_groups;
    const double share = (double)n / (double)fit->options.n_rows;
    wf_status status = WF_NO_MEMORY;
    double *u = malloc((size_t)((rank + 2) * n) * sizeof *u);
    double *z =
        calloc((size_t)(unit->parts * rank + 1 + 3 * S + (p + 1) + WF_SCAN_ROWS), sizeof *z);
    const double **x = malloc((size_t)p * sizeof *x);
    if (!u || !z || !x) {
        goto done;
    }
    double *zero = u + rank * n, *r = zero + n, *c = z + unit->parts * rank + 1;
    for (ptrdiff_t k = 0; k < p; k++) {
        x[k] = s->sample + k * n;
    }
    wf_k->whiten(n, p, x, rank, s->L, u, n, r);
    memset(zero, 0, (size_t)n * sizeof *zero);
    for (ptrdiff_t j = 0; j < S; j++) {
        c[j] = fit->options.first_update[j] * share;
    }
    sample_problem sample = {.unit = unit,
                             .u = u,
                             .zero = zero,
                             .c = c,
                             .cap = c + S,
                             .z = z,
                             .total = c + 2 * S,
                             .x = x,
                             .room = c + 3 * S};
    double value = 0, bound = 0;
    status = solve_sample(fit, &sample, &value, &bound, stop, context);
    if (status != WF_OK) {
        goto done;
    }
    unit->noise = wf_unit_noise(fit, unit, unit->centre);
    if (s->stride == 1) {
        memcpy(unit->best, unit->centre, (size_t)(unit->parts * (p + 1)) * sizeof *unit->best);
        unit->value = value;
        unit->bound = bound;
        unit->state = WF_UNIT_DONE;
    } else {
        set_widths(fit, unit, u, r);
    }
done:
    free(u);
    free(z);
    free(x);
    return status;
}
