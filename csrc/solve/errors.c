/* Streaming error sums of one column against another. */
#include <math.h>

#include "kernels/kernels.h"
#include "solve/scan.h"
#include "wfcast.h"

static wf_status visit(void *context, int lane, const wf_rows_block *rows, double *room)
{
    wf_errors *e = (wf_errors *)context + lane;
    const double *a = rows->column[0], *b = rows->column[1];
    double *difference = room, *truth = room + WF_SCAN_ROWS;
    const ptrdiff_t bad = wf_k->differences(rows->n, a, b, difference, truth, &e->max_abs);
    e->n += rows->n - bad;
    e->n_nonfinite += bad;
    e->sum_abs += wf_k->sum_abs(rows->n, difference);
    e->sum_sq += wf_k->dot(rows->n, difference, difference);
    e->sum_b += wf_k->sum(rows->n, truth);
    e->sum_b_sq += wf_k->dot(rows->n, truth, truth);
    return WF_OK;
}

wf_status wf_error_sums(const wf_table *table, int n_threads, wf_errors *out)
{
    wf_errors lane[WF_SCAN_LANES] = {{0}};
    wf_fault fault;
    const wf_status status =
        wf_scan(table, 2, WF_SCAN_UNCHECKED, 0, n_threads, visit, lane, 2 * WF_SCAN_ROWS, &fault);
    *out = lane[0];
    for (int l = 1; l < WF_SCAN_LANES; l++) {
        out->sum_abs += lane[l].sum_abs;
        out->sum_sq += lane[l].sum_sq;
        out->max_abs = fmax(out->max_abs, lane[l].max_abs);
        out->sum_b += lane[l].sum_b;
        out->sum_b_sq += lane[l].sum_b_sq;
        out->n += lane[l].n;
        out->n_nonfinite += lane[l].n_nonfinite;
    }
    return status;
}
