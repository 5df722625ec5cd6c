/* After a band pass: the lanes of every band into one, in their order. */
#include "solve/lad/join.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "solve/lad/unit.h"

/* Cells become rows; those in which signs differ, by more than their share of the noise, are
 * remembered. */
static void join_cells(const wf_fit *fit, wf_unit *unit, int kind, wf_band *to, double *x,
                       double *y)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank, width = rank + WF_LAD_CELL_EXTRA;
    for (ptrdiff_t at = 0; at < WF_LAD_CELLS && to->cell; at++) {
        const double *cell = to->cell + at * width;
        if (cell[rank + 2] > 0) {
            for (ptrdiff_t t = 0; t < rank; t++) {
                x[t * to->capacity + to->n] = cell[t];
            }
            y[to->n++] = cell[rank];
            const double noise = unit->noise * cell[rank + 2] / (double)fit->options.n_rows;
            if (cell[rank + 1] - fabs(cell[rank]) > noise) {
                unit->mixed[kind * WF_LAD_CELLS + at] = 1;
            }
        }
    }
}

static wf_status join(const wf_fit *fit, wf_unit *unit, int kind)
{
    const ptrdiff_t rank = wf_lad_of(fit)->rank,
                    S = kind == WF_LAD_DIFFERENCE ? fit->options.n_groups : 0;
    wf_band *to = &unit->joined[kind];
    const wf_status status = wf_band_new(fit, unit, kind, to);
    if (status != WF_OK) {
        return status;
    }
    ptrdiff_t n = to->cell ? WF_LAD_CELLS : 0;
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        n += unit->lane[lane * WF_LAD_KINDS + kind].n;
    }
    to->capacity = n;
    to->kept = malloc((size_t)(n + 1) * (size_t)(rank + 1) * sizeof *to->kept);
    to->group = malloc((size_t)(n + 1) * sizeof *to->group);
    if (!to->kept || !to->group) {
        return WF_NO_MEMORY;
    }
    double *x = to->kept, *y = x + n * rank; /* column-major, as the solver wants it */
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        wf_band *from = &unit->lane[lane * WF_LAD_KINDS + kind];
        for (ptrdiff_t i = 0; i < from->n; i++) {
            const double *row = from->kept + i * (rank + 1);
            for (ptrdiff_t t = 0; t < rank; t++) {
                x[t * n + to->n] = row[t];
            }
            y[to->n] = row[rank];
            to->group[to->n++] = S ? from->group[i] : 0;
        }
        wf_band_add(fit, kind, from, to);
        free(from->kept);
        free(from->group);
        from->kept = NULL;
        from->group = NULL;
    }
    const ptrdiff_t rows = to->n;
    assert(rows + (to->cell ? WF_LAD_CELLS : 0) == to->capacity);
    join_cells(fit, unit, kind, to, x, y);
    for (ptrdiff_t i = rows; i < to->n; i++) {
        to->group[i] = 0;
    }
    /* columns close up where cells stayed empty; the last one is y */
    for (ptrdiff_t t = 1; t <= rank; t++) {
        memmove(x + t * to->n, x + t * to->capacity, (size_t)to->n * sizeof *x);
    }
    to->capacity = to->n;
    unit->kept += to->n;
    return WF_OK;
}

wf_status wf_band_join(wf_fit *fit)
{
    wf_lad *s = fit->solver;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit *unit = &s->unit[i];
        if (unit->state != WF_UNIT_ACTIVE) {
            continue;
        }
        unit->kept = 0;
        for (int kind = 0; kind < WF_LAD_KINDS; kind++) {
            if (wf_unit_has(unit, kind)) {
                const wf_status status = join(fit, unit, kind);
                if (status != WF_OK) {
                    return status;
                }
            }
        }
    }
    return WF_OK;
}
