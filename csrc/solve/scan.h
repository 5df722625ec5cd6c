/* One read of a segment: blocks of rows, widened to float64, handed to a visitor over fixed lanes.
 *
 * A segment is cut into lanes by its size alone. Whatever a visitor adds up, it adds up by lane,
 * and lanes are joined in their order, so the number of threads cannot change a result. */
#ifndef WF_SOLVE_SCAN_H
#define WF_SOLVE_SCAN_H

#include "wfcast.h"

enum {
    WF_SCAN_LANES = 32,       /* enough to keep many threads busy, few enough to join */
    WF_SCAN_LANE_ROWS = 8192, /* fewer lanes rather than shorter ones */
    WF_SCAN_ROWS = 512        /* rows of a block: eight columns of them fit a first-level cache */
};

typedef struct {
    ptrdiff_t start, n;          /* rows, in the order of the scan */
    const double *const *column; /* inputs, then targets */
    const int64_t *group;        /* n trajectory numbers, or NULL */
} wf_rows_block;

#define WF_SCAN_UNCHECKED PTRDIFF_MIN

/* `room` is scratch of the size asked for, private to the calling thread. Returns WF_OK or
 * WF_NO_MEMORY. */
typedef wf_status wf_visitor(void *context, int lane, const wf_rows_block *rows, double *room);

/* The table holds n_columns of numbers, and trajectory numbers after them where it has one column
 * more; group >= 0 stands for such a column, WF_SCAN_UNCHECKED for none and no check. Else values
 * are checked to be finite, trajectory numbers to be below n_groups (when > 0). */
wf_status wf_scan(const wf_table *segment, ptrdiff_t n_columns, ptrdiff_t group, ptrdiff_t n_groups,
                  int n_threads, wf_visitor *visit, void *context, ptrdiff_t room_size,
                  wf_fault *fault);

#endif
