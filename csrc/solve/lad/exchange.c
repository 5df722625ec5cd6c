/* The rows and sums of an absolute_error pass, of several processes.
 *
 * A message holds, in a sample pass, the number of sampled rows and for each its place, its group
 * where there is a hinge, and its columns. In a band pass: the rows outside the span, then for
 * every active unit and kind a head, the sums, the cells, the kept rows and their groups. */
#include "solve/lad/exchange.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "solve/lad/unit.h"

uint64_t wf_lad_state(const wf_fit *fit)
{
    const wf_lad *s = fit->solver;
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
    const wf_lad *s = fit->solver;
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

static int take_sample_row(wf_fit *fit, wf_message *message)
{
    wf_lad *s = fit->solver;
    const ptrdiff_t columns = fit->options.p + fit->options.m;
    int64_t k;
    int32_t group = 0;
    if (!wf_read(message, &k, sizeof k) || k < 0 || k >= s->n_sample || s->taken[k] ||
        (s->hinged && !wf_read(message, &group, sizeof group)) || group < 0 ||
        (s->hinged && group >= fit->options.n_groups)) {
        return 0;
    }
    s->taken[k] = 1;
    if (s->hinged) {
        s->sample_group[k] = group;
    }
    int whole = 1;
    for (ptrdiff_t c = 0; c < columns; c++) {
        whole &= wf_read(message, &s->sample[c * s->n_sample + k], sizeof *s->sample);
    }
    return whole;
}

static wf_status absorb_sample(wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    wf_lad *s = fit->solver;
    ptrdiff_t left = s->n_sample;
    memset(s->taken, 0, (size_t)s->n_sample);
    for (ptrdiff_t i = 0; i < n_messages; i++) {
        int64_t n;
        if (!wf_read(&message[i], &n, sizeof n) || n < 0 || n > left) {
            return WF_BAD_MESSAGE;
        }
        left -= n;
        for (int64_t row = 0; row < n; row++) {
            if (!take_sample_row(fit, &message[i])) {
                return WF_BAD_MESSAGE;
            }
        }
    }
    return left ? WF_BAD_MESSAGE : WF_OK;
}

/* -- the bands -- */

typedef struct {
    int64_t n, in_band, spilled;
    double dropped;
} band_head;

static wf_status put_band(const wf_fit *fit, const wf_unit *unit, int kind, wf_writer *to)
{
    const size_t width = (size_t)(wf_lad_of(fit)->rank + 1);
    wf_band sum = {0};
    assert(unit->lane);
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

/* n more kept rows of a message behind those of `to`. */
static wf_status take_kept(const wf_fit *fit, int kind, ptrdiff_t n, wf_message *message,
                           wf_band *to)
{
    const size_t width = (size_t)(wf_lad_of(fit)->rank + 1) * sizeof *to->kept;
    if (n < 0 || n > message->rows) {
        return WF_BAD_MESSAGE;
    }
    double *kept = realloc(to->kept, (size_t)(to->n + n + 1) * width);
    if (!kept) {
        return WF_NO_MEMORY;
    }
    to->kept = kept;
    int whole = wf_read(message, kept + to->n * (wf_lad_of(fit)->rank + 1), (size_t)n * width);
    if (kind == WF_LAD_DIFFERENCE) {
        int32_t *group = realloc(to->group, (size_t)(to->n + n + 1) * sizeof *group);
        if (!group) {
            return WF_NO_MEMORY;
        }
        to->group = group;
        whole = whole && wf_read(message, group + to->n, (size_t)n * sizeof *group);
        for (ptrdiff_t i = to->n; i < to->n + n && whole; i++) {
            whole = group[i] >= 0 && group[i] < fit->options.n_groups;
        }
    }
    to->n += n;
    to->capacity = to->n;
    return whole ? WF_OK : WF_BAD_MESSAGE;
}

/* A band of a message into the first lane. */
static wf_status take_band(const wf_fit *fit, const wf_unit *unit, int kind, wf_message *message)
{
    wf_band sum = {0}, *to = &unit->lane[kind];
    wf_status status = wf_band_new(fit, unit, kind, &sum);
    if (status == WF_OK) {
        band_head head;
        if (!wf_read(message, &head, sizeof head) ||
            !wf_read(message, sum.g, (size_t)wf_band_sums(fit, kind) * sizeof *sum.g) ||
            (sum.cell &&
             !wf_read(message, sum.cell, (size_t)wf_band_cells(fit) * sizeof *sum.cell))) {
            status = WF_BAD_MESSAGE;
        } else {
            sum.in_band = (ptrdiff_t)head.in_band;
            sum.spilled = head.spilled != 0;
            sum.dropped = head.dropped;
            wf_band_add(fit, kind, &sum, to);
            status = take_kept(fit, kind, (ptrdiff_t)head.n, message, to);
        }
    }
    wf_band_release(&sum);
    return status;
}

/* -- rows outside the sample's span -- */

static void put_strays(const wf_fit *fit, wf_writer *to)
{
    const wf_lad *s = fit->solver;
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

/* As many of each message as there is room for. */
static wf_status take_strays(wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    enum { ALL = WF_SCAN_LANES * WF_LAD_STRAYS };
    wf_lad *s = fit->solver;
    const size_t width = (size_t)(fit->options.p + 1) * sizeof *s->stray;
    const ptrdiff_t share = n_messages < ALL ? ALL / n_messages : 1;
    ptrdiff_t found = 0;
    for (ptrdiff_t i = 0; i < n_messages; i++) {
        int64_t n;
        const char *rows = NULL;
        if (!wf_read(&message[i], &n, sizeof n) || n < 0 || n > ALL ||
            !(rows = wf_take(&message[i], (size_t)n * width))) {
            return WF_BAD_MESSAGE;
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
    const wf_lad *s = fit->solver;
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

wf_status wf_lad_absorb(wf_fit *fit, ptrdiff_t n_messages, wf_message *message)
{
    wf_lad *s = fit->solver;
    if (s->phase == WF_LAD_SAMPLE) {
        return absorb_sample(fit, n_messages, message);
    }
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        wf_unit_release(&s->unit[i]);
    }
    wf_status status = take_strays(fit, n_messages, message);
    status = status == WF_OK ? wf_band_prepare(fit) : status;
    for (ptrdiff_t i = 0; i < s->n_units; i++) {
        const wf_unit *unit = &s->unit[i];
        for (int kind = 0; kind < WF_LAD_KINDS && unit->state == WF_UNIT_ACTIVE; kind++) {
            for (ptrdiff_t j = 0; j < n_messages && status == WF_OK && wf_unit_has(unit, kind);
                 j++) {
                status = take_band(fit, unit, kind, &message[j]);
            }
        }
    }
    return status;
}
