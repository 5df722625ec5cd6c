/* Units and their bands: what both are made of, their memory and their precision. */
#include "solve/lad/unit.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"

/* Standard errors of the sample's solution that a band is made for: a second band is seldom needed
 * then. Fewer save rows, but a band that misses the solution costs a pass. */
static const double BAND_ERRORS = 6;

/* -- units -- */

int wf_unit_has(const wf_unit *unit, int kind)
{
    return kind < unit->parts || (kind == WF_LAD_DIFFERENCE && unit->parts == 2);
}

int wf_unit_bands(const wf_unit *unit, int kind)
{
    return kind != WF_LAD_DIFFERENCE ? kind < unit->parts : unit->parts == 2 && unit->watched;
}

/* A few roundings of everything that residuals are made from: products, their sum, and the sum over
 * rows, which adds little as it is made from many short ones. */
double wf_unit_noise(const wf_fit *fit, const wf_unit *unit, const double *b)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    double size = 0;
    for (int part = 0; part < unit->parts; part++) {
        size += s->sums[p + unit->target + part];
        for (ptrdiff_t k = 0; k < p; k++) {
            size += fabs(b[part * (p + 1) + k]) * s->sums[k];
        }
        size += fabs(b[part * (p + 1) + p]) * s->sums[p + fit->options.m];
    }
    const double hinge = unit->parts == 2 ? 1 + s->eta : 1; /* which magnifies what it is given */
    return 4 * DBL_EPSILON * size * hinge;
}

void wf_unit_release(wf_unit *unit)
{
    for (int i = 0; unit->lane && i < WF_SCAN_LANES * WF_LAD_KINDS; i++) {
        wf_band_release(&unit->lane[i]);
    }
    free(unit->lane);
    unit->lane = NULL;
    for (int kind = 0; kind < WF_LAD_KINDS; kind++) {
        wf_band_release(&unit->joined[kind]);
    }
}

/* -- the hinge -- */

/* A tenth of the tolerance: the gap has room for what is left out. */
int wf_hinge_counts(const wf_fit *fit, double excess, double value)
{
    return wf_lad_of(fit)->eta * excess > 0.1 * fit->options.tol * value;
}

/* With b of part 1 for both parts the last update is 0, and F at most errors + moved, so F* is; and
 * an update is at most the errors of both parts there, and here, and what it is here. The hundredth
 * more is for rounding. */
double wf_reach(double errors, double moved)
{
    assert(!(errors < 0) && !(moved < 0));
    return 2.01 * (errors + moved);
}

/* -- bands -- */

double wf_band_share(const wf_fit *fit)
{
    const wf_lad *s = fit->solver;
    return fmin(0.5, BAND_ERRORS * (double)s->rank / sqrt((double)s->n_sample));
}

ptrdiff_t wf_band_row_bytes(const wf_fit *fit)
{
    return (wf_lad_of(fit)->rank + 1) * (ptrdiff_t)sizeof(double) + (ptrdiff_t)sizeof(int32_t);
}

/* Half as much again as the share, or as the last pass kept: arrays grow by halves. */
double wf_band_bytes(const wf_fit *fit, const wf_unit *unit)
{
    const double n = (double)fit->options.n_rows;
    const double guess =
        1.5 * wf_band_share(fit) * n * (unit->parts + (unit->parts == 2 && unit->watched));
    return (fmax(guess, 1.5 * (double)unit->kept) + 4096) * (double)wf_band_row_bytes(fit);
}

int wf_unmoved(const wf_fit *fit, const wf_unit *unit, int kind, const double *row, ptrdiff_t step)
{
    const ptrdiff_t p = fit->options.p;
    const double first = row[0], last = row[(p - 1) * step];
    return kind == WF_LAD_DIFFERENCE ? first == last
                                     : last == row[(p + unit->target + kind) * step];
}

/* Where they save enough: a tenth of all rows and of those that the band has memory for, and ten
 * for every cell. */
int wf_use_cells(const wf_fit *fit, const wf_unit *unit, double unmoved_share)
{
    return unmoved_share > 0.1 && unmoved_share * (double)fit->options.n_rows > 1e4 &&
           unmoved_share * (double)fit->options.n_rows >
               0.1 * wf_band_bytes(fit, unit) / (double)wf_band_row_bytes(fit);
}

wf_status wf_band_new(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band)
{
    assert(wf_unit_has(unit, kind) && !band->g && !band->cell);
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    const ptrdiff_t S = kind == WF_LAD_DIFFERENCE ? fit->options.n_groups : 0;
    band->g = calloc((size_t)(wf_band_sums(fit, kind) + 1), sizeof *band->g);
    if (!band->g) {
        return WF_NO_MEMORY;
    }
    band->total = band->g + (S ? S : 1) * rank;
    band->size = band->total + S;
    band->whole = band->size + S;
    if (unit->cells && wf_unit_bands(unit, kind)) {
        band->cell = calloc((size_t)wf_band_cells(fit), sizeof *band->cell);
        if (!band->cell) {
            return WF_NO_MEMORY;
        }
    }
    return WF_OK;
}

void wf_band_release(wf_band *band)
{
    free(band->kept);
    free(band->group);
    free(band->g);
    free(band->cell);
    memset(band, 0, sizeof *band);
}

wf_status wf_band_prepare(wf_fit *fit)
{
    wf_lad *s = fit->solver;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit *unit = &s->unit[i];
        if (unit->state != WF_UNIT_ACTIVE) {
            continue;
        }
        assert(!unit->lane);
        unit->lane = calloc(WF_SCAN_LANES * WF_LAD_KINDS, sizeof *unit->lane);
        if (!unit->lane) {
            return WF_NO_MEMORY;
        }
        for (int at = 0; at < WF_SCAN_LANES * WF_LAD_KINDS; at++) {
            const int kind = at % WF_LAD_KINDS;
            if (wf_unit_has(unit, kind) && wf_band_new(fit, unit, kind, &unit->lane[at]) != WF_OK) {
                return WF_NO_MEMORY;
            }
        }
    }
    return WF_OK;
}

ptrdiff_t wf_band_sums(const wf_fit *fit, int kind)
{
    const ptrdiff_t S = kind == WF_LAD_DIFFERENCE ? fit->options.n_groups : 0;
    return (S ? S : 1) * wf_lad_of(fit)->rank + 3 * S;
}

ptrdiff_t wf_band_cells(const wf_fit *fit)
{
    return WF_LAD_CELLS * (wf_lad_of(fit)->rank + WF_LAD_CELL_EXTRA);
}

void wf_band_add(const wf_fit *fit, int kind, const wf_band *from, wf_band *to)
{
    to->spilled |= from->spilled;
    to->in_band += from->in_band;
    to->dropped += from->dropped;
    wf_k->axpy(wf_band_sums(fit, kind), 1, from->g, to->g);
    if (to->cell) {
        assert(from->cell);
        wf_k->axpy(wf_band_cells(fit), 1, from->cell, to->cell);
    }
}
