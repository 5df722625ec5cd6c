/* Orders of rows, runs of constant stride and shared memory; see table.h. */
#include "core/table.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "core/half.h"

static void swap_dims(wf_table *table, int a, int b)
{
    const ptrdiff_t length = table->shape[a];
    table->shape[a] = table->shape[b];
    table->shape[b] = length;
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        ptrdiff_t *strides = table->columns[c].strides;
        const ptrdiff_t stride = strides[a];
        strides[a] = strides[b];
        strides[b] = stride;
    }
}

static void drop_dim(wf_table *table, int d)
{
    const size_t tail = (size_t)(table->ndim - d - 1) * sizeof(ptrdiff_t);
    memmove(&table->shape[d], &table->shape[d + 1], tail);
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        ptrdiff_t *strides = table->columns[c].strides;
        memmove(&strides[d], &strides[d + 1], tail);
    }
    table->ndim--;
}

/* Dimension a belongs outside b when the first column that tells them apart has the longer stride
 * along a. */
static int belongs_outside(const wf_table *table, int a, int b)
{
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        const ptrdiff_t *strides = table->columns[c].strides;
        const ptrdiff_t far = strides[a] < 0 ? -strides[a] : strides[a];
        const ptrdiff_t near = strides[b] < 0 ? -strides[b] : strides[b];
        if (far != near) {
            return far > near;
        }
    }
    return a < b;
}

static int mergeable(const wf_table *table, int outer, int inner)
{
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        const ptrdiff_t *strides = table->columns[c].strides;
        if (strides[outer] != strides[inner] * table->shape[inner]) {
            return 0;
        }
    }
    return 1;
}

void wf_table_coalesce(wf_table *table)
{
    for (int d = table->ndim - 1; d >= 0; d--) {
        if (table->shape[d] == 1) {
            drop_dim(table, d);
        }
    }
    for (int i = 1; i < table->ndim; i++) { /* insertion sort: few dimensions */
        for (int d = i; d > 0 && belongs_outside(table, d, d - 1); d--) {
            swap_dims(table, d, d - 1);
        }
    }
    for (int d = table->ndim - 1; d > 0; d--) {
        if (mergeable(table, d - 1, d)) {
            table->shape[d - 1] *= table->shape[d];
            for (ptrdiff_t c = 0; c < table->n_columns; c++) {
                table->columns[c].strides[d - 1] = table->columns[c].strides[d];
            }
            drop_dim(table, d);
        }
    }
}

int wf_table_contiguous(const wf_table *table)
{
    if (table->ndim > 1) {
        return 0;
    }
    for (ptrdiff_t c = 0; c < table->n_columns; c++) {
        const wf_column *column = &table->columns[c];
        const ptrdiff_t size = wf_item_size(column->dtype);
        if ((table->ndim == 1 && column->strides[0] != size) ||
            (uintptr_t)column->data % (uintptr_t)size) {
            return 0;
        }
    }
    return 1;
}

void wf_runs_begin(wf_runs *runs, const wf_table *table, ptrdiff_t column, ptrdiff_t start,
                   ptrdiff_t n)
{
    assert(column >= 0 && column < table->n_columns);
    assert(start >= 0 && n >= 0 && n <= table->n_rows - start);
    runs->table = table;
    runs->column = &table->columns[column];
    runs->left = n;
    runs->pointer = runs->column->data;
    for (int d = table->ndim - 1; d >= 0 && n > 0; d--) {
        runs->index[d] = start % table->shape[d];
        start /= table->shape[d];
        runs->pointer += runs->index[d] * runs->column->strides[d];
    }
}

ptrdiff_t wf_runs_next(wf_runs *runs, char **pointer, ptrdiff_t *stride)
{
    if (runs->left == 0) {
        return 0;
    }
    *pointer = runs->pointer;
    const int inner = runs->table->ndim - 1;
    if (inner < 0) { /* a single value */
        *stride = 0;
        runs->left--;
        return 1;
    }
    const ptrdiff_t *shape = runs->table->shape;
    const ptrdiff_t *strides = runs->column->strides;
    *stride = strides[inner];
    ptrdiff_t count = shape[inner] - runs->index[inner];
    if (count > runs->left) {
        count = runs->left;
    }
    runs->left -= count;
    if (runs->left == 0) {
        return count;
    }
    runs->pointer -= runs->index[inner] * strides[inner];
    runs->index[inner] = 0;
    int d = inner - 1;
    for (; runs->index[d] == shape[d] - 1; d--) {
        runs->pointer -= runs->index[d] * strides[d];
        runs->index[d] = 0;
    }
    runs->index[d]++;
    runs->pointer += strides[d];
    return count;
}

/* The bytes that a column can touch: [low, high). */
static void extent(const wf_table *table, ptrdiff_t c, uintptr_t *low, uintptr_t *high)
{
    const wf_column *column = &table->columns[c];
    ptrdiff_t below = 0, above = wf_item_size(column->dtype);
    for (int d = 0; d < table->ndim; d++) {
        const ptrdiff_t reach = (table->shape[d] - 1) * column->strides[d];
        if (reach < 0) {
            below += reach;
        } else {
            above += reach;
        }
    }
    *low = (uintptr_t)column->data - (uintptr_t)(-below);
    *high = (uintptr_t)column->data + (uintptr_t)above;
}

/* Columns whose extents overlap but that never meet, as columns of one 2-D array: every address of
 * a column is its start plus a multiple of the greatest common divisor of both columns' strides, so
 * their distance modulo it says how near two elements can come. */
static int interleaved(const wf_table *table, const wf_column *a, const wf_column *b)
{
    ptrdiff_t divisor = 0;
    for (int d = 0; d < table->ndim; d++) {
        if (table->shape[d] == 1) {
            continue;
        }
        for (int side = 0; side < 2; side++) {
            ptrdiff_t stride = side ? b->strides[d] : a->strides[d];
            stride = stride < 0 ? -stride : stride;
            while (stride) { /* Euclid */
                const ptrdiff_t rest = divisor % stride;
                divisor = stride;
                stride = rest;
            }
        }
    }
    if (divisor == 0) {
        return 0;
    }
    ptrdiff_t distance = (ptrdiff_t)((intptr_t)b->data - (intptr_t)a->data) % divisor;
    if (distance < 0) {
        distance += divisor;
    }
    return distance >= wf_item_size(a->dtype) && divisor - distance >= wf_item_size(b->dtype);
}

wf_overlap wf_column_overlap(const wf_table *table, ptrdiff_t a, ptrdiff_t b)
{
    if (table->n_rows == 0) {
        return WF_OVERLAP_NONE;
    }
    const wf_column *left = &table->columns[a], *right = &table->columns[b];
    uintptr_t low_a, high_a, low_b, high_b;
    extent(table, a, &low_a, &high_a);
    extent(table, b, &low_b, &high_b);
    if (high_a <= low_b || high_b <= low_a) {
        return WF_OVERLAP_NONE;
    }
    int same = left->data == right->data && left->dtype == right->dtype;
    for (int d = 0; d < table->ndim && same; d++) {
        same = table->shape[d] == 1 || left->strides[d] == right->strides[d];
    }
    if (same) {
        return WF_OVERLAP_SAME;
    }
    return interleaved(table, left, right) ? WF_OVERLAP_NONE : WF_OVERLAP_PARTIAL;
}

int wf_column_overlaps_itself(const wf_table *table, ptrdiff_t c)
{
    if (table->n_rows == 0) {
        return 0;
    }
    wf_column column = table->columns[c];
    wf_table own = *table;
    own.columns = &column;
    own.n_columns = 1;
    wf_table_coalesce(&own); /* the longest stride comes first */
    ptrdiff_t reach = wf_item_size(column.dtype);
    for (int d = own.ndim - 1; d >= 0; d--) {
        const ptrdiff_t stride = column.strides[d] < 0 ? -column.strides[d] : column.strides[d];
        if (stride < reach) {
            return 1;
        }
        reach += stride * (own.shape[d] - 1);
    }
    return 0;
}

static int finite_at(const char *pointer, wf_dtype dtype)
{
    uint16_t half;
    float single;
    double full;
    switch (dtype) {
    case WF_F64:
        memcpy(&full, pointer, sizeof full);
        return isfinite(full) != 0;
    case WF_F32:
        memcpy(&single, pointer, sizeof single);
        return isfinite(single) != 0;
    case WF_F16:
        memcpy(&half, pointer, sizeof half);
        return (half & 0x7c00u) != 0x7c00u;
    case WF_BF16:
        memcpy(&half, pointer, sizeof half);
        return (half & 0x7f80u) != 0x7f80u;
    default:
        return 1;
    }
}

int wf_table_find_nonfinite(const wf_table *table, ptrdiff_t from, ptrdiff_t to, wf_fault *fault)
{
    for (ptrdiff_t c = from; c < to; c++) {
        wf_runs runs;
        char *pointer;
        ptrdiff_t stride, count, row = 0;
        wf_runs_begin(&runs, table, c, 0, table->n_rows);
        while ((count = wf_runs_next(&runs, &pointer, &stride)) > 0) {
            for (ptrdiff_t i = 0; i < count; i++) {
                if (!finite_at(pointer + i * stride, table->columns[c].dtype)) {
                    fault->column = c;
                    fault->row = row + i;
                    return 0;
                }
            }
            row += count;
        }
    }
    return -1;
}
