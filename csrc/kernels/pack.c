#include "kernels/pack.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "kernels/kernels.h"

enum { CHUNK = 512 }; /* elements converted through the stack at a time */

static void gather_f32(ptrdiff_t n, const char *src, ptrdiff_t stride, wf_dtype dtype,
                       float *restrict dst)
{
    uint16_t half;
    switch (dtype) {
    case WF_F32:
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(&dst[i], src + i * stride, sizeof *dst);
        }
        break;
    case WF_F16:
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(&half, src + i * stride, sizeof half);
            dst[i] = wf_f32_from_f16(half);
        }
        break;
    default:
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(&half, src + i * stride, sizeof half);
            dst[i] = wf_f32_from_bf16(half);
        }
        break;
    }
}

static void run_to_f32(ptrdiff_t n, const char *src, ptrdiff_t stride, wf_dtype dtype, float *dst)
{
    if (stride != wf_item_size(dtype)) {
        gather_f32(n, src, stride, dtype, dst);
    } else if (dtype == WF_F32) {
        memcpy(dst, src, (size_t)n * sizeof *dst);
    } else if (dtype == WF_F16) {
        wf_k->widen_f16(n, src, dst);
    } else {
        wf_k->widen_bf16(n, src, dst);
    }
}

static void run_to_f64(ptrdiff_t n, const char *src, ptrdiff_t stride, wf_dtype dtype, double *dst)
{
    if (dtype == WF_F64) {
        if (stride == (ptrdiff_t)sizeof *dst) {
            memcpy(dst, src, (size_t)n * sizeof *dst);
            return;
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(&dst[i], src + i * stride, sizeof *dst);
        }
        return;
    }
    if (dtype == WF_F32 && stride == (ptrdiff_t)sizeof(float)) {
        wf_k->widen_f32(n, src, dst);
        return;
    }
    float chunk[CHUNK];
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        run_to_f32(count, src + i * stride, stride, dtype, chunk);
        wf_k->widen_f32(count, chunk, dst + i);
    }
}

void wf_pack_f32(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n, float *dst)
{
    wf_runs runs;
    char *src;
    ptrdiff_t stride, count;
    wf_runs_begin(&runs, table, column, start, n);
    for (; (count = wf_runs_next(&runs, &src, &stride)) > 0; dst += count) {
        run_to_f32(count, src, stride, table->columns[column].dtype, dst);
    }
}

void wf_pack_f64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n, double *dst)
{
    wf_runs runs;
    char *src;
    ptrdiff_t stride, count;
    wf_runs_begin(&runs, table, column, start, n);
    for (; (count = wf_runs_next(&runs, &src, &stride)) > 0; dst += count) {
        run_to_f64(count, src, stride, table->columns[column].dtype, dst);
    }
}

void wf_pack_i64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                 int64_t *dst)
{
    wf_runs runs;
    char *src;
    ptrdiff_t stride, count;
    wf_runs_begin(&runs, table, column, start, n);
    for (; (count = wf_runs_next(&runs, &src, &stride)) > 0; dst += count) {
        for (ptrdiff_t i = 0; i < count; i++) {
            memcpy(&dst[i], src + i * stride, sizeof *dst);
        }
    }
}

/* Contiguous float32 to one strided run. */
static int run_from_f32(ptrdiff_t n, char *dst, ptrdiff_t stride, wf_dtype dtype, const float *src)
{
    int bad = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        bad |= !wf_fits_f32(src[i], dtype);
    }
    if (dtype == WF_F32) {
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(dst + i * stride, &src[i], sizeof *src);
        }
        return bad;
    }
    uint16_t chunk[CHUNK];
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        if (dtype == WF_F16) {
            wf_k->narrow_f16(count, src + i, chunk);
        } else {
            wf_k->narrow_bf16(count, src + i, chunk);
        }
        for (ptrdiff_t l = 0; l < count; l++) {
            memcpy(dst + (i + l) * stride, &chunk[l], sizeof *chunk);
        }
    }
    return bad;
}

int wf_unpack_f32(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                  const float *src)
{
    wf_runs runs;
    char *dst;
    ptrdiff_t stride, count;
    int bad = 0;
    wf_runs_begin(&runs, table, column, start, n);
    for (; (count = wf_runs_next(&runs, &dst, &stride)) > 0; src += count) {
        bad |= run_from_f32(count, dst, stride, table->columns[column].dtype, src);
    }
    return bad;
}

static int run_from_f64(ptrdiff_t n, char *dst, ptrdiff_t stride, wf_dtype dtype, const double *src)
{
    int bad = 0;
    if (dtype == WF_F64) {
        for (ptrdiff_t i = 0; i < n; i++) {
            memcpy(dst + i * stride, &src[i], sizeof *src);
            bad |= !isfinite(src[i]);
        }
        return bad;
    }
    float chunk[CHUNK];
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        for (ptrdiff_t l = 0; l < count; l++) {
            chunk[l] = dtype == WF_F32 ? (float)src[i + l] : wf_f32_odd_from_f64(src[i + l]);
        }
        bad |= run_from_f32(count, dst + i * stride, stride, dtype, chunk);
    }
    return bad;
}

int wf_unpack_f64(const wf_table *table, ptrdiff_t column, ptrdiff_t start, ptrdiff_t n,
                  const double *src)
{
    wf_runs runs;
    char *dst;
    ptrdiff_t stride, count;
    int bad = 0;
    wf_runs_begin(&runs, table, column, start, n);
    for (; (count = wf_runs_next(&runs, &dst, &stride)) > 0; src += count) {
        bad |= run_from_f64(count, dst, stride, table->columns[column].dtype, src);
    }
    return bad;
}

int wf_fits_f32(float value, wf_dtype dtype)
{
    const float limit = dtype == WF_F16 ? WF_F16_LIMIT : dtype == WF_BF16 ? WF_BF16_LIMIT : FLT_MAX;
    return fabsf(value) <= limit;
}

int wf_fits_f64(double value, wf_dtype dtype)
{
    return dtype == WF_F64
               ? isfinite(value) != 0
               : wf_fits_f32(dtype == WF_F32 ? (float)value : wf_f32_odd_from_f64(value), dtype);
}
