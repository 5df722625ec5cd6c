/* The rows and sums of an absolute_error pass, of several processes. */
#include <stdlib.h>
#include <string.h>

#include "solve/lad.h"
#include "solve/part.h"

uint64_t wf_lad_state(const wf_fit *fit)
{
    const wf_lad *s = fit->lad;
    uint64_t state = (uint64_t)s->phase + 2 * (uint64_t)s->stride;
    for (ptrdiff_t i = 0; i < s->n_units && s->phase == WF_LAD_BAND; i++) {
        const wf_unit *unit = &s->unit[i];
        const uint64_t flags = (uint64_t)(4 * (int)unit->state + 2 * unit->watched + unit->cells);
        state = wf_digest(state ^ flags, unit->kappa, WF_LAD_KINDS);
        state = wf_digest(state, unit->centre, unit->parts * (fit->options.p + 1));
    }
    return wf_digest(state, s->L, s->rank * (fit->options.p + 1));
}

/* -- the sample -- */

static wf_status put_sample(const wf_fit *fit, wf_writer *to)
{
    const wf_lad *s = fit->lad;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    int64_t n = 0;
    for (ptrdiff_t k = 0; k < s->n_sample; k++) {
        n += s->taken[k];
    }
    wf_put(to, &n, sizeof n);
    for (ptrdiff_t k = 0; k < s->n_sample; k++) {
        if (s->taken[k]) {
            const int64_t place = k;
            wf_put(to, &place, sizeof place);
            if (s->hinged) {
                wf_put(to, &s->sample_group[k], sizeof *s->sample_group);
            }
            for (ptrdiff_t c = 0; c < columns; c++) {
                wf_put(to, &s->sample[c * s->n_sample + k], sizeof *s->sample);
            }
        }
    }
    return WF_OK;
}

static int take_sample_row(wf_fit *fit, wf_part *part)
{
    wf_lad *s = fit->lad;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    int64_t k;
    int32_t group = 0;
    if (!wf_read(part, &k, sizeof k) || k < 0 || k >= s->n_sample || s->taken[k] ||
        (s->hinged && !wf_read(part, &group, sizeof group)) || group < 0 ||
        (s->hinged && group >= fit->options.n_groups)) {
        return 0;
    }
    s->taken[k] = 1;
    if (s->hinged) {
        s->sample_group[k] = group;
    }
    int whole = 1;
    for (ptrdiff_t c = 0; c < columns; c++) {
        whole &= wf_read(part, &s->sample[c * s->n_sample + k], sizeof *s->sample);
    }
    return whole;
}

static wf_status absorb_sample(wf_fit *fit, ptrdiff_t n_parts, wf_part *part)
{
    wf_lad *s = fit->lad;
    ptrdiff_t left = s->n_sample;
    memset(s->taken, 0, (size_t)s->n_sample);
    for (ptrdiff_t i = 0; i < n_parts; i++) {
        int64_t n;
        if (!wf_read(&part[i], &n, sizeof n) || n < 0 || n > left) {
            return WF_BAD_PART;
        }
        left -= n;
        for (int64_t row = 0; row < n; row++) {
            if (!take_sample_row(fit, &part[i])) {
                return WF_BAD_PART;
            }
        }
    }
    return left ? WF_BAD_PART : WF_OK;
}

/* -- the bands -- */

typedef struct {
    int64_t n, in_band, spilled;
    double dropped;
} band_head;

static wf_status put_band(const wf_fit *fit, const wf_unit *unit, int kind, wf_writer *to)
{
    const size_t width = (size_t)(fit->lad->rank + 1);
    wf_band sum = {0};
    const wf_status status = wf_band_new(fit, unit, kind, &sum);
    if (status == WF_OK) {
        for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
            const wf_band *from = &unit->lane[lane * WF_LAD_KINDS + kind];
            wf_band_add(fit, kind, from, &sum);
            sum.n += from->n;
        }
        const band_head head = {sum.n, sum.in_band, sum.spilled, sum.dropped};
        wf_put(to, &head, sizeof head);
        wf_put(to, sum.g, (size_t)wf_band_sums(fit, kind) * sizeof *sum.g);
        if (sum.cell) {
            wf_put(to, sum.cell, (size_t)wf_band_cells(fit) * sizeof *sum.cell);
        }
        for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
            const wf_band *from = &unit->lane[lane * WF_LAD_KINDS + kind];
            wf_put(to, from->kept, (size_t)from->n * width * sizeof *from->kept);
        }
        for (int lane = 0; lane < WF_SCAN_LANES && kind == WF_LAD_DIFFERENCE; lane++) {
            const wf_band *from = &unit->lane[lane * WF_LAD_KINDS + kind];
            wf_put(to, from->group, (size_t)from->n * sizeof *from->group);
        }
    }
    wf_band_release(&sum);
    return status;
}

/* n more kept rows of a part behind those of `to`. */
static wf_status take_kept(const wf_fit *fit, int kind, ptrdiff_t n, wf_part *part, wf_band *to)
{
    const size_t width = (size_t)(fit->lad->rank + 1) * sizeof *to->kept;
    if (n < 0 || n > part->rows) {
        return WF_BAD_PART;
    }
    double *kept = realloc(to->kept, (size_t)(to->n + n + 1) * width);
    if (!kept) {
        return WF_NO_MEMORY;
    }
    to->kept = kept;
    int whole = wf_read(part, kept + to->n * (fit->lad->rank + 1), (size_t)n * width);
    if (kind == WF_LAD_DIFFERENCE) {
        int32_t *group = realloc(to->group, (size_t)(to->n + n + 1) * sizeof *group);
        if (!group) {
            return WF_NO_MEMORY;
        }
        to->group = group;
        whole = whole && wf_read(part, group + to->n, (size_t)n * sizeof *group);
        for (ptrdiff_t i = to->n; i < to->n + n && whole; i++) {
            whole = group[i] >= 0 && group[i] < fit->options.n_groups;
        }
    }
    to->n += n;
    to->capacity = to->n;
    return whole ? WF_OK : WF_BAD_PART;
}

/* A band of a part into the first lane. */
static wf_status take_band(const wf_fit *fit, const wf_unit *unit, int kind, wf_part *part)
{
    wf_band sum = {0}, *to = &unit->lane[kind];
    wf_status status = wf_band_new(fit, unit, kind, &sum);
    if (status == WF_OK) {
        band_head head;
        if (!wf_read(part, &head, sizeof head) ||
            !wf_read(part, sum.g, (size_t)wf_band_sums(fit, kind) * sizeof *sum.g) ||
            (sum.cell && !wf_read(part, sum.cell, (size_t)wf_band_cells(fit) * sizeof *sum.cell))) {
            status = WF_BAD_PART;
        } else {
            sum.in_band = (ptrdiff_t)head.in_band;
            sum.spilled = head.spilled != 0;
            sum.dropped = head.dropped;
            wf_band_add(fit, kind, &sum, to);
            status = take_kept(fit, kind, (ptrdiff_t)head.n, part, to);
        }
    }
    wf_band_release(&sum);
    return status;
}

/* -- rows outside the sample's span -- */

static void put_strays(const wf_fit *fit, wf_writer *to)
{
    const wf_lad *s = fit->lad;
    const ptrdiff_t width = fit->options.p + 1;
    int64_t n = 0;
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        n += s->lane_strays[lane];
    }
    wf_put(to, &n, sizeof n);
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        wf_put(to, s->stray + lane * WF_LAD_STRAYS * width,
               (size_t)(s->lane_strays[lane] * width) * sizeof *s->stray);
    }
}

/* As many of each part as there is room for. */
static wf_status take_strays(wf_fit *fit, ptrdiff_t n_parts, wf_part *part)
{
    enum { ALL = WF_SCAN_LANES * WF_LAD_STRAYS };
    wf_lad *s = fit->lad;
    const size_t width = (size_t)(fit->options.p + 1) * sizeof *s->stray;
    const ptrdiff_t share = n_parts < ALL ? ALL / n_parts : 1;
    ptrdiff_t found = 0;
    for (ptrdiff_t i = 0; i < n_parts; i++) {
        int64_t n;
        const char *rows = NULL;
        if (!wf_read(&part[i], &n, sizeof n) || n < 0 || n > ALL ||
            !(rows = wf_take(&part[i], (size_t)n * width))) {
            return WF_BAD_PART;
        }
        for (ptrdiff_t k = 0; k < n && k < share && found < ALL; k++, found++) {
            memcpy((char *)s->stray + (size_t)found * width, rows + (size_t)k * width, width);
        }
    }
    for (int lane = 0; lane < WF_SCAN_LANES; lane++) {
        const ptrdiff_t left = found - (ptrdiff_t)lane * WF_LAD_STRAYS;
        s->lane_strays[lane] = (int)(left < 0 ? 0 : left < WF_LAD_STRAYS ? left : WF_LAD_STRAYS);
    }
    return WF_OK;
}

/* -- both -- */

wf_status wf_lad_export(const wf_fit *fit, wf_writer *to)
{
    const wf_lad *s = fit->lad;
    if (s->phase == WF_LAD_SAMPLE) {
        return put_sample(fit, to);
    }
    put_strays(fit, to);
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        const wf_unit *unit = &s->unit[i];
        for (int kind = 0; kind < WF_LAD_KINDS && unit->state == WF_UNIT_ACTIVE; kind++) {
            const wf_status status =
                wf_unit_has(unit, kind) ? put_band(fit, unit, kind, to) : WF_OK;
            if (status != WF_OK) {
                return status;
            }
        }
    }
    return WF_OK;
}

wf_status wf_lad_absorb(wf_fit *fit, ptrdiff_t n_parts, wf_part *part)
{
    wf_lad *s = fit->lad;
    if (s->phase == WF_LAD_SAMPLE) {
        return absorb_sample(fit, n_parts, part);
    }
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit_release(&s->unit[i]);
    }
    wf_status status = take_strays(fit, n_parts, part);
    status = status == WF_OK ? wf_band_prepare(fit) : status;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        const wf_unit *unit = &s->unit[i];
        for (int kind = 0; kind < WF_LAD_KINDS && unit->state == WF_UNIT_ACTIVE; kind++) {
            for (ptrdiff_t j = 0; j < n_parts && status == WF_OK && wf_unit_has(unit, kind); j++) {
                status = take_band(fit, unit, kind, &part[j]);
            }
        }
    }
    return status;
}
