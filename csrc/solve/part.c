/* A pass over rows that lie with several processes: every one exports what it gathered and absorbs
 * what all of them gathered. Fixed sums add up, kept rows follow each other, in the order of the
 * processes, so that all go on with the same bits. */
#include "solve/part.h"

#include <stdlib.h>
#include <string.h>

static const int64_t MARK = 0x7761637366776601; /* also tells byte orders apart */

typedef struct {
    int64_t mark, p, m, n_rows, n_groups, n_passes;
    uint64_t state;
    int64_t rows; /* the only one that may differ */
} header;

void wf_put(wf_writer *to, const void *from, size_t size)
{
    if (to->failed || size == 0) {
        return;
    }
    if (to->size + size > to->capacity) {
        const size_t capacity = to->size + size + to->capacity / 2;
        char *data = realloc(to->data, capacity);
        if (!data) {
            to->failed = 1;
            return;
        }
        to->data = data;
        to->capacity = capacity;
    }
    memcpy(to->data + to->size, from, size);
    to->size += size;
}

const char *wf_take(wf_part *part, size_t size)
{
    if (size > part->left) {
        return NULL;
    }
    const char *at = part->at;
    part->at += size;
    part->left -= size;
    return at;
}

int wf_read(wf_part *part, void *to, size_t size)
{
    const char *from = wf_take(part, size);
    if (from && size) {
        memcpy(to, from, size);
    }
    return from != NULL;
}

uint64_t wf_digest(uint64_t seed, const double *values, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++) { /* FNV-1a, word by word */
        uint64_t word;
        memcpy(&word, values + i, sizeof word);
        seed = (seed ^ word) * 0x100000001b3u;
        seed ^= seed >> 32;
    }
    return seed;
}

static header header_of(const wf_fit *fit)
{
    const wf_fit_options *o = &fit->options;
    return (header){.mark = MARK,
                    .p = o->p,
                    .m = o->m,
                    .n_rows = o->n_rows,
                    .n_groups = o->n_groups,
                    .n_passes = fit->info.n_passes,
                    .state = fit->lad ? wf_lad_state(fit) : wf_least_squares_state(fit),
                    .rows = fit->rows_seen};
}

wf_status wf_fit_export(const wf_fit *fit, char **data, size_t *size)
{
    if (fit->rows_seen != fit->options.n_here) {
        return WF_BAD_SEGMENTS;
    }
    wf_writer to = {0};
    const header head = header_of(fit);
    wf_put(&to, &head, sizeof head);
    wf_status status = fit->lad ? wf_lad_export(fit, &to) : wf_least_squares_export(fit, &to);
    status = status == WF_OK && to.failed ? WF_NO_MEMORY : status;
    if (status != WF_OK) {
        free(to.data);
        return status;
    }
    *data = to.data;
    *size = to.size;
    return WF_OK;
}

/* Headers off the parts; WF_OK where they belong to this pass and bring all its rows. */
static wf_status read_headers(const wf_fit *fit, ptrdiff_t n_parts, wf_part *part)
{
    const header own = header_of(fit);
    ptrdiff_t left = fit->options.n_rows;
    for (ptrdiff_t i = 0; i < n_parts; i++) {
        header other;
        if (!wf_read(&part[i], &other, sizeof other)) {
            return WF_BAD_PART;
        }
        part[i].rows = (ptrdiff_t)other.rows;
        other.rows = own.rows;
        if (memcmp(&own, &other, sizeof own) != 0 || part[i].rows < 0 || part[i].rows > left) {
            return WF_BAD_PART;
        }
        left -= part[i].rows;
    }
    return left ? WF_BAD_PART : WF_OK;
}

wf_status wf_fit_absorb(wf_fit *fit, ptrdiff_t n_parts, const char *const *data, const size_t *size)
{
    wf_part *part = malloc((size_t)(n_parts + 1) * sizeof *part);
    if (!part) {
        return WF_NO_MEMORY;
    }
    for (ptrdiff_t i = 0; i < n_parts; i++) {
        part[i] = (wf_part){data[i], size[i], 0};
    }
    wf_status status = read_headers(fit, n_parts, part);
    if (status == WF_OK) {
        status = fit->lad ? wf_lad_absorb(fit, n_parts, part)
                          : wf_least_squares_absorb(fit, n_parts, part);
    }
    for (ptrdiff_t i = 0; i < n_parts && status == WF_OK; i++) {
        status = part[i].left ? WF_BAD_PART : WF_OK;
    }
    if (status == WF_OK) {
        fit->rows_seen = fit->options.n_rows;
    }
    free(part);
    return status;
}
