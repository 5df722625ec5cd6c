/* Tables of strided columns: one common order of rows, runs of constant stride, overlap. */
#ifndef WF_CORE_TABLE_H
#define WF_CORE_TABLE_H

#include "wfcast.h"

static inline ptrdiff_t wf_item_size(wf_dtype dtype)
{
    return dtype == WF_F64 || dtype == WF_I64 ? 8 : dtype == WF_F32 ? 4 : 2;
}

/* Reorder and merge dimensions in place, the same way for every column: fewest dimensions, longest
 * inner run. The set of rows and which values form a row stay the same; their order becomes that of
 * memory. */
void wf_table_coalesce(wf_table *table);

/* Every column is one contiguous run of its own dtype, aligned to it (after coalescing). */
int wf_table_contiguous(const wf_table *table);

/* Walks the runs of constant stride that rows [start, start + n) of a column fall into. */
typedef struct {
    const wf_table *table;
    const wf_column *column;
    ptrdiff_t left;               /* rows not yet handed out */
    ptrdiff_t index[WF_MAX_DIMS]; /* position of the next row */
    char *pointer;                /* of the next row */
} wf_runs;

void wf_runs_begin(wf_runs *runs, const wf_table *table, ptrdiff_t column, ptrdiff_t start,
                   ptrdiff_t n);
/* 0 at the end; else the length of the next run, its first element in *pointer and its stride in
 * bytes. */
ptrdiff_t wf_runs_next(wf_runs *runs, char **pointer, ptrdiff_t *stride);

/* The first non-finite value among columns [from, to), lowest column first, in C order of the table
 * as given (so: before coalescing). 0 and *fault set if there is one, else -1. */
int wf_table_find_nonfinite(const wf_table *table, ptrdiff_t from, ptrdiff_t to, wf_fault *fault);

#endif
