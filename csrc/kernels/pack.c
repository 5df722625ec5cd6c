/* Strided columns to contiguous runs and back; see pack.h. */
#include "kernels/pack.h"

#include <assert.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "core/half.h"
#include "kernels/kernels.h"

/* The last float32 below the midpoint at which a 16-bit float rounds to infinity. */
#define F16_LIMIT 0x1.ffdffep+15f
#define BF16_LIMIT 0x1.fefffep+127f

enum { CHUNK = 512 }; /* elements converted through the stack at a time */

/* Strided elements to contiguous ones. The step that two columns of one C-ordered array have is a
 * constant of its own, which the compiler turns into vectors. */
#define STAMP_GATHER(name, type)                                                                   \
    static void name(ptrdiff_t n, const char *restrict src, ptrdiff_t stride, type *restrict dst)  \
    {                                                                                              \
        const ptrdiff_t twice = 2 * (ptrdiff_t)sizeof(type);                                       \
        if (stride == twice) {                                                                     \
            for (ptrdiff_t i = 0; i < n; i++) {                                                    \
                memcpy(&dst[i], src + i * twice, sizeof(type));                                    \
            }                                                                                      \
        } else {                                                                                   \
            for (ptrdiff_t i = 0; i < n; i++) {                                                    \
                memcpy(&dst[i], src + i * stride, sizeof(type));                                   \
            }                                                                                      \
        }                                                                                          \
    }
STAMP_GATHER(gather_16, uint16_t)
STAMP_GATHER(gather_32, float)
STAMP_GATHER(gather_64, double)
#undef STAMP_GATHER

static void widen_16(ptrdiff_t n, const void *src, wf_dtype dtype, float *dst)
{
    if (dtype == WF_F16) {
        wf_k->widen_f16(n, src, dst);
    } else {
        wf_k->widen_bf16(n, src, dst);
    }
}

static void run_to_f32(ptrdiff_t n, const char *src, ptrdiff_t stride, wf_dtype dtype, float *dst)
{
    const int contiguous = stride == wf_item_size(dtype);
    if (dtype == WF_F32) {
        if (contiguous) {
            memcpy(dst, src, (size_t)n * sizeof *dst);
        } else {
            gather_32(n, src, stride, dst);
        }
        return;
    }
    if (contiguous) {
        widen_16(n, src, dtype, dst);
        return;
    }
    uint16_t chunk[CHUNK];
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        gather_16(count, src + i * stride, stride, chunk);
        widen_16(count, chunk, dtype, dst + i);
    }
}

static void run_to_f64(ptrdiff_t n, const char *src, ptrdiff_t stride, wf_dtype dtype, double *dst)
{
    if (dtype == WF_F64) {
        if (stride == (ptrdiff_t)sizeof *dst) {
            memcpy(dst, src, (size_t)n * sizeof *dst);
        } else {
            gather_64(n, src, stride, dst);
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
    assert(table->columns[column].dtype != WF_F64 && table->columns[column].dtype != WF_I64);
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

/* 1 when one of n 16-bit floats, whose infinity has the bits `infinity`, is not finite. */
static int beyond_16(ptrdiff_t n, const uint16_t *values, int infinity)
{
    int16_t largest = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int16_t size = (int16_t)(values[i] & 0x7fff);
        largest = size > largest ? size : largest;
    }
    return largest >= infinity;
}

static int beyond_32(ptrdiff_t n, const float *values)
{
    int bad = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        bad |= !(fabsf(values[i]) <= FLT_MAX);
    }
    return bad;
}

/* Contiguous float32 to one strided run; 1 when a value is not finite there. */
static int run_from_f32(ptrdiff_t n, char *dst, ptrdiff_t stride, wf_dtype dtype, const float *src)
{
    if (dtype == WF_F32) {
        if (stride == (ptrdiff_t)sizeof *src) {
            memcpy(dst, src, (size_t)n * sizeof *src);
        } else {
            for (ptrdiff_t i = 0; i < n; i++) {
                memcpy(dst + i * stride, &src[i], sizeof *src);
            }
        }
        return beyond_32(n, src);
    }
    int bad = 0;
    uint16_t chunk[CHUNK];
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        if (dtype == WF_F16) {
            wf_k->narrow_f16(count, src + i, chunk);
            bad |= beyond_16(count, chunk, 0x7c00);
        } else {
            wf_k->narrow_bf16(count, src + i, chunk);
            bad |= beyond_16(count, chunk, 0x7f80);
        }
        char *at = dst + i * stride;
        if (stride == (ptrdiff_t)sizeof *chunk) {
            memcpy(at, chunk, (size_t)count * sizeof *chunk);
        } else {
            for (ptrdiff_t l = 0; l < count; l++) {
                memcpy(at + l * stride, &chunk[l], sizeof *chunk);
            }
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
    const float limit = dtype == WF_F16 ? F16_LIMIT : dtype == WF_BF16 ? BF16_LIMIT : FLT_MAX;
    return fabsf(value) <= limit;
}

int wf_fits_f64(double value, wf_dtype dtype)
{
    return dtype == WF_F64
               ? isfinite(value) != 0
               : wf_fits_f32(dtype == WF_F32 ? (float)value : wf_f32_odd_from_f64(value), dtype);
}
