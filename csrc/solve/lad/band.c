/* The band pass: every row of every unit that takes part is kept or dropped.
 *
 * At the unit's centre a row has the residual r and the whitened row u, h = |u|. |r| <= kappa h: it
 * is in the band and kept. Else it is dropped: no step of a length up to kappa changes its sign,
 * and up to there it adds |r| - sign(r) u'z, which is linear. Rows that are zero add nothing. */
#include "solve/lad/band.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/kernels.h"
#include "solve/lad/unit.h"

/* The most rows that a lane keeps. Each lane has its own limit, so that what is kept does not
 * depend on threads: twice its even share of what the unit may keep, and 16384 rows more, for lanes
 * may be few or uneven. */
static ptrdiff_t most_rows(const wf_fit *fit, const wf_unit *unit)
{
    const double rows =
        fmin(unit->limit / (double)wf_band_row_bytes(fit), 3 * WF_LAD_SOLVER_ROWS / 2);
    const ptrdiff_t most = (ptrdiff_t)rows / (WF_SCAN_LANES / 2) + 16384;
    if (fit->options.n_here == fit->options.n_rows) {
        return most;
    }
    const double here = (double)fit->options.n_here, all = (double)fit->options.n_rows;
    const double lanes = fmin(fmax(here / (double)WF_SCAN_LANE_ROWS, 1), WF_SCAN_LANES);
    /* the share of this process, over fewer lanes where it has few rows */
    return (ptrdiff_t)fmax(here / all * (double)most * (double)WF_SCAN_LANES / lanes, 1024);
}

/* Room for one more row; 0 with the row to be taken by its sign, -1 out of memory. */
static int reserve(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band)
{
    if (band->n < band->capacity) {
        return 1;
    }
    const ptrdiff_t most = most_rows(fit, unit);
    if (band->n >= most) {
        return 0;
    }
    ptrdiff_t capacity = band->capacity ? band->capacity + band->capacity / 2 : 64;
    capacity = capacity < most ? capacity : most;
    const size_t width = (size_t)(wf_lad_of(fit)->rank + 1);
    double *kept = realloc(band->kept, (size_t)capacity * width * sizeof *kept);
    if (!kept) {
        return -1;
    }
    band->kept = kept;
    if (kind == WF_LAD_DIFFERENCE) {
        int32_t *group = realloc(band->group, (size_t)capacity * sizeof *group);
        if (!group) {
            return -1;
        }
        band->group = group;
    }
    band->capacity = capacity;
    return 1;
}

/* -- the pass -- */

/* Cell of a row: sign, exponent and three bits of fraction of its first and last input, scattered
 * over 2^10 cells by the top bits of products with two odd numbers (those of splitmix64). */
static ptrdiff_t cell_of(double first, double last)
{
    uint64_t a, b;
    memcpy(&a, &first, sizeof a);
    memcpy(&b, &last, sizeof b);
    return (ptrdiff_t)((((a >> 49) * 0x9e3779b97f4a7c15u) ^ ((b >> 49) * 0xbf58476d1ce4e5b9u)) >>
                       54);
}

/* One row into the sums of the dropped. */
static void drop_row(const wf_lad *s, wf_band *band, const double *u, ptrdiff_t ld, double r,
                     ptrdiff_t group)
{
    const double sign = r > 0 ? 1 : r < 0 ? -1 : 0;
    double *g = band->g + (group >= 0 ? group * s->rank : 0);
    for (ptrdiff_t t = 0; t < s->rank; t++) {
        g[t] -= sign * u[t * ld];
    }
    if (group >= 0) {
        band->total[group] += fabs(r);
    } else {
        band->dropped += fabs(r);
    }
}

static wf_status keep_row(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band,
                          const double *u, double r, ptrdiff_t group)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank;
    const int room = reserve(fit, unit, kind, band);
    if (room < 0) {
        return WF_NO_MEMORY;
    }
    if (!room) {
        band->spilled = 1;
        drop_row(fit->solver, band, u, WF_SCAN_ROWS, r, group);
        return WF_OK;
    }
    double *kept = band->kept + band->n * (rank + 1);
    for (ptrdiff_t t = 0; t < rank; t++) {
        kept[t] = u[t * WF_SCAN_ROWS];
    }
    kept[rank] = r;
    if (group >= 0) {
        band->group[band->n] = (int32_t)group;
    }
    band->n++;
    return WF_OK;
}

/* The rows of a block that lie in the band and are not zero, in their order. Without branches, as
 * which they are can't be foreseen. */
static ptrdiff_t find_band(ptrdiff_t n, const double *sign, const double *h2, int32_t *at)
{
    ptrdiff_t found = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        at[found] = (int32_t)i;
        found += (sign[i] == 0) & (h2[i] > 0);
    }
    return found;
}

/* Take those of unmoved weights into their cells; the number of the others, which stay in `at`. */
static ptrdiff_t into_cells(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band,
                            const wf_rows_block *rows, const double *u, const double *r,
                            ptrdiff_t found, int32_t *at)
{
    const ptrdiff_t p = fit->options.p, rank = wf_lad_of(fit)->rank;
    if (kind == WF_LAD_DIFFERENCE && fit->options.n_groups > 1) {
        return found; /* cells of difference rows would need one set per hinge */
    }
    const double *first = rows->column[0], *last = rows->column[p - 1];
    const double *next = kind == WF_LAD_DIFFERENCE ? first : rows->column[p + unit->target + kind];
    const unsigned char *mixed = unit->mixed + kind * WF_LAD_CELLS;
    int32_t row[WF_SCAN_ROWS], cell[WF_SCAN_ROWS];
    ptrdiff_t taken = 0, left = 0;
    for (ptrdiff_t k = 0; k < found; k++) {
        const int32_t i = at[k];
        const int32_t c = (int32_t)cell_of(first[i], last[i]);
        const int goes = (last[i] == next[i]) & !mixed[c];
        row[taken] = i;
        cell[taken] = c;
        taken += goes;
        at[left] = i;
        left += !goes;
    }
    for (ptrdiff_t k = 0; k < taken; k++) {
        const ptrdiff_t i = row[k];
        double *sums = band->cell + cell[k] * (rank + WF_LAD_CELL_EXTRA);
        for (ptrdiff_t t = 0; t < rank; t++) {
            sums[t] += u[t * WF_SCAN_ROWS + i];
        }
        sums[rank] += r[i];
        sums[rank + 1] += fabs(r[i]);
        sums[rank + 2] += 1;
    }
    return left;
}

static wf_status sort_rows(const wf_fit *fit, const wf_unit *unit, int kind, wf_band *band,
                           const wf_rows_block *rows, const double *u, const double *h2,
                           const double *r, double *sign)
{
    const wf_lad *s = fit->solver;
    const ptrdiff_t n = rows->n;
    const int hinge = kind == WF_LAD_DIFFERENCE;
    for (ptrdiff_t i = 0; hinge && i < n; i++) {
        band->whole[rows->group[i]] += fabs(r[i]);
        band->size[rows->group[i]] += sqrt(h2[i]);
    }
    if (!wf_unit_bands(unit, kind)) {
        return WF_OK;
    }
    const ptrdiff_t kept = wf_k->band(n, r, h2, unit->kappa[kind] * unit->kappa[kind], sign);
    band->in_band += kept;
    if (hinge) {
        for (ptrdiff_t i = 0; i < n; i++) {
            if (sign[i] != 0) {
                drop_row(s, band, u + i, WF_SCAN_ROWS, r[i], rows->group[i]);
            }
        }
    } else {
        for (ptrdiff_t t = 0; t < s->rank; t++) {
            band->g[t] -= wf_k->dot(n, sign, u + t * WF_SCAN_ROWS);
        }
        band->dropped += wf_k->dot(n, sign, r);
    }
    if (kept == 0) {
        return WF_OK;
    }
    int32_t at[WF_SCAN_ROWS];
    ptrdiff_t found = find_band(n, sign, h2, at);
    if (band->cell) {
        found = into_cells(fit, unit, kind, band, rows, u, r, found, at);
    }
    for (ptrdiff_t k = 0; k < found; k++) {
        const ptrdiff_t i = at[k];
        const wf_status status =
            keep_row(fit, unit, kind, band, u + i, r[i], hinge ? rows->group[i] : -1);
        if (status != WF_OK) {
            return status;
        }
    }
    return WF_OK;
}

ptrdiff_t wf_band_room(const wf_fit *fit)
{
    return (wf_lad_of(fit)->rank + 3) * WF_SCAN_ROWS + fit->options.p + 1;
}

/* Rows on which a combination of columns that vanished on the sample does not: by more than 1e-10
 * of its terms, far above rounding and far below what a column of its own brings. */
static void find_strays(const wf_fit *fit, int lane, const wf_rows_block *rows)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p, q = p + (fit->options.fit_intercept ? 1 : 0);
    for (ptrdiff_t d = 0; d < q - s->rank; d++) {
        const double *null = s->null + d * (p + 1);
        for (ptrdiff_t i = 0; i < rows->n && s->lane_strays[lane] < WF_LAD_STRAYS; i++) {
            double value = null[p], size = fabs(null[p]);
            for (ptrdiff_t k = 0; k < p; k++) {
                const double term = null[k] * rows->column[k][i];
                value += term;
                size += fabs(term);
            }
            if (fabs(value) > 1e-10 * size) {
                double *row = s->stray + (lane * WF_LAD_STRAYS + s->lane_strays[lane]++) * (p + 1);
                for (ptrdiff_t k = 0; k < p; k++) {
                    row[k] = rows->column[k][i];
                }
                row[p] = 1;
            }
        }
    }
}

wf_status wf_band_visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    const wf_fit *fit = context;
    const wf_lad *s = fit->solver;
    const ptrdiff_t p = fit->options.p;
    double *u = room, *h2 = u + s->rank * WF_SCAN_ROWS, *r = h2 + WF_SCAN_ROWS,
           *sign = r + WF_SCAN_ROWS;
    double *difference = sign + WF_SCAN_ROWS;
    assert(s->phase == WF_LAD_BAND && lane >= 0 && lane < WF_SCAN_LANES);
    find_strays(fit, lane, rows);
    wf_k->whiten(rows->n, p, rows->column, s->rank, s->L, u, WF_SCAN_ROWS, h2);
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        const wf_unit *unit = &s->unit[i];
        for (int kind = 0; kind < WF_LAD_KINDS && unit->state == WF_UNIT_ACTIVE; kind++) {
            if (!wf_unit_has(unit, kind)) {
                continue;
            }
            const double *b = unit->centre + (kind == 1 ? p + 1 : 0), *y = NULL;
            if (kind == WF_LAD_DIFFERENCE) {
                for (ptrdiff_t k = 0; k <= p; k++) {
                    difference[k] = unit->centre[k] - unit->centre[p + 1 + k];
                }
                b = difference;
            } else {
                y = rows->column[p + unit->target + kind];
            }
            wf_k->residual(rows->n, p, rows->column, y, b, r);
            const wf_status status = sort_rows(
                fit, unit, kind, &unit->lane[lane * WF_LAD_KINDS + kind], rows, u, h2, r, sign);
            if (status != WF_OK) {
                return status;
            }
        }
    }
    return WF_OK;
}
