/* Between strided columns of any dtype and contiguous runs of the compute type. */
#ifndef WF_KERNELS_PACK_H
#define WF_KERNELS_PACK_H

#include "core/table.h"

/* Rows [start, start + n) of a column, widened exactly. wf_pack_f32 is not for float64 columns. */
void wf_pack_f32(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n, float *dst);
void wf_pack_f64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                 double *dst);
void wf_pack_i64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                 int64_t *dst);

/* The other way, rounded once to nearest even. Nonzero when a value stored is not finite. */
int wf_unpack_f32(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                  const float *src);
int wf_unpack_f64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                  const double *src);

/* 1 when `value` is finite after rounding to `dtype`. */
int wf_fits_f32(float value, wf_dtype dtype);
int wf_fits_f64(double value, wf_dtype dtype);

#endif
