/* Every kernel of one instruction set, over the vector words of a simd_*.h file. Included once per
 * set. */
#include <float.h>
#include <string.h>

#include "kernels/kernels.h"

#define PASTE_(a, b, c) a##_##b##_##c
#define PASTE(a, b, c) PASTE_(a, b, c)

/* UNROLL: running sums stay in registers only where the loops over them are gone. INDEPENDENT: no
 * pass through a loop reads what another one writes. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define UNROLL _Pragma("GCC unroll 8")
#define INDEPENDENT _Pragma("GCC ivdep")
#endif

/* The one order in which running sums are joined. */
static double join(const double *running)
{
    return ((running[0] + running[4]) + (running[2] + running[6])) +
           ((running[1] + running[5]) + (running[3] + running[7]));
}

static double join_moves(const double *lane)
{
    return (join(lane) + join(lane + WF_RUNNING_SUMS)) +
           (join(lane + 2 * WF_RUNNING_SUMS) + join(lane + 3 * WF_RUNNING_SUMS));
}

#define NAME(x) PASTE(x, f32, kernel)
#define T float
#define C float
#define V vf
#define W FW
#define TILE 8
#define R vf
#define BAD vf_bad
#define SET1 vf_set1
#define FMA vf_fma
#define LOAD vf_load_f32
#define ROUND(x) (x)
#define BACK(x) (x)
#define LANES vf_store_f32
#define NOTE vf_note
#define ANY vf_any
#define STORE vf_store_f32
#define STREAM vf_stream_f32
#define RELOAD vf_load_f32
#include "kernels/apply_body.h"

#define NAME(x) PASTE(x, f16, kernel)
#define T uint16_t
#define C float
#define V vf
#define W FW
#define TILE 8
#define R vh
#define BAD vh_bad
#define SET1 vf_set1
#define FMA vf_fma
#define LOAD vf_load_f16
#define ROUND vh_from_f32
#define BACK vh_to_f32
#define LANES vf_store_f32
#define NOTE vh_note
#define ANY vh_any
#define STORE vh_store
#define STREAM vh_stream
#define RELOAD vh_load
#include "kernels/apply_body.h"

#define NAME(x) PASTE(x, bf16, kernel)
#define T uint16_t
#define C float
#define V vp
#define W BW
#define TILE 4
#define R vb
#define BAD vb_bad
#define SET1 vp_set1
#define FMA vp_fma
#define LOAD vp_load_bf16
#define ROUND vb_from_f32
#define BACK vb_to_f32
#define LANES vp_store_f32
#define NOTE vb_note
#define ANY vb_any
#define STORE vb_store
#define STREAM vb_stream
#define RELOAD vb_load
#include "kernels/apply_body.h"

#define NAME(x) PASTE(x, f64, kernel)
#define T double
#define C double
#define V vd
#define W DW
#define TILE 8
#define R vd
#define BAD vd_bad
#define SET1 vd_set1
#define FMA vd_fma
#define LOAD vd_load_f64
#define ROUND(x) (x)
#define BACK(x) (x)
#define LANES vd_store_f64
#define NOTE vd_note
#define ANY vd_any
#define STORE vd_store_f64
#define STREAM vd_stream_f64
#define RELOAD vd_load_f64
#include "kernels/apply_body.h"

/* -- conversions of contiguous runs, unaligned allowed -- */

#define STAMP_WIDEN(half)                                                                          \
    static void widen_##half(ptrdiff_t n, const void *src, float *dst)                             \
    {                                                                                              \
        const uint16_t *from = src;                                                                \
        ptrdiff_t i = 0;                                                                           \
        for (; i + FW <= n; i += FW) {                                                             \
            vf_store_f32(dst + i, vf_load_##half(from + i));                                       \
        }                                                                                          \
        if (i < n) {                                                                               \
            uint16_t in[FW] = {0};                                                                 \
            float out[FW];                                                                         \
            memcpy(in, from + i, (size_t)(n - i) * sizeof *in);                                    \
            vf_store_f32(out, vf_load_##half(in));                                                 \
            memcpy(dst + i, out, (size_t)(n - i) * sizeof *out);                                   \
        }                                                                                          \
    }                                                                                              \
    static void narrow_##half(ptrdiff_t n, const float *src, void *dst)                            \
    {                                                                                              \
        uint16_t *to = dst;                                                                        \
        ptrdiff_t i = 0;                                                                           \
        for (; i + FW <= n; i += FW) {                                                             \
            vf_store_##half(to + i, vf_load_f32(src + i));                                         \
        }                                                                                          \
        if (i < n) {                                                                               \
            float in[FW] = {0};                                                                    \
            uint16_t out[FW];                                                                      \
            memcpy(in, src + i, (size_t)(n - i) * sizeof *in);                                     \
            vf_store_##half(out, vf_load_f32(in));                                                 \
            memcpy(to + i, out, (size_t)(n - i) * sizeof *out);                                    \
        }                                                                                          \
    }
STAMP_WIDEN(f16)
STAMP_WIDEN(bf16)
#undef STAMP_WIDEN

static void widen_f32(ptrdiff_t n, const void *src, double *dst)
{
    const float *from = src;
    ptrdiff_t i = 0;
    for (; i + DW <= n; i += DW) {
        vd_store_f64(dst + i, vd_load_f32(from + i));
    }
    if (i < n) {
        float in[DW] = {0};
        double out[DW];
        memcpy(in, from + i, (size_t)(n - i) * sizeof *in);
        vd_store_f64(out, vd_load_f32(in));
        memcpy(dst + i, out, (size_t)(n - i) * sizeof *out);
    }
}

/* -- averages, all of them in one sweep over w -- */

#define STAMP_BLEND(name, T, V, W, set1, fma, load, store, note, any, BAD)                         \
    static inline __attribute__((always_inline)) BAD name##_tile(                                  \
        ptrdiff_t at, int u, const T *w, ptrdiff_t k, const T *c, T *const *a, BAD bad)            \
    {                                                                                              \
        V v[4];                                                                                    \
        UNROLL                                                                                     \
        for (int i = 0; i < u; i++) {                                                              \
            v[i] = load(w + at + i * W);                                                           \
            bad = note(bad, v[i]);                                                                 \
        }                                                                                          \
        for (ptrdiff_t j = 0; j < k; j++) {                                                        \
            const V weight = set1(c[j]);                                                           \
            UNROLL                                                                                 \
            for (int i = 0; i < u; i++) {                                                          \
                const V old = load(a[j] + at + i * W);                                             \
                store(a[j] + at + i * W, fma(weight, fma(old, set1(-1), v[i]), old));              \
            }                                                                                      \
        }                                                                                          \
        return bad;                                                                                \
    }                                                                                              \
    static int name(ptrdiff_t n, const T *w, ptrdiff_t k, const T *c, T *const *a)                 \
    {                                                                                              \
        BAD bad = {0};                                                                             \
        ptrdiff_t at = 0;                                                                          \
        for (; at + 4 * W <= n; at += 4 * W) {                                                     \
            bad = name##_tile(at, 4, w, k, c, a, bad);                                             \
        }                                                                                          \
        for (; at + W <= n; at += W) {                                                             \
            bad = name##_tile(at, 1, w, k, c, a, bad);                                             \
        }                                                                                          \
        const size_t rest = (size_t)(n - at) * sizeof(T);                                          \
        T from[W] = {0}, to[W] = {0};                                                              \
        T *const edge[1] = {to};                                                                   \
        memcpy(from, w + at, rest);                                                                \
        for (ptrdiff_t j = 0; rest && j < k; j++) {                                                \
            memcpy(to, a[j] + at, rest);                                                           \
            name##_tile(0, 1, from, 1, c + j, edge, bad);                                          \
            memcpy(a[j] + at, to, rest);                                                           \
        }                                                                                          \
        return any(note(bad, load(from)));                                                         \
    }
STAMP_BLEND(blend_f32, float, vf, FW, vf_set1, vf_fma, vf_load_f32, vf_store_f32, vf_note, vf_any,
            vf_bad)
STAMP_BLEND(blend_f64, double, vd, DW, vd_set1, vd_fma, vd_load_f64, vd_store_f64, vd_note, vd_any,
            vd_bad)
#undef STAMP_BLEND

/* -- products of columns -- */

static void minus(ptrdiff_t n, const float *x, const float *base, float *out)
{
    ptrdiff_t i = 0;
    for (; i + FW <= n; i += FW) {
        __builtin_prefetch(x + i + WF_GRAM_RUN);
        vf_store_f32(out + i, vf_fma(vf_load_f32(base + i), vf_set1(-1), vf_load_f32(x + i)));
    }
    for (; i < n; i++) {
        out[i] = x[i] - base[i];
    }
}

/* Four columns by two; the lanes that do not fit a vector are left to further passes. */
static inline void gram_tile(ptrdiff_t n, const float *x, const float *y, double *sums,
                             ptrdiff_t to_next_row)
{
    for (ptrdiff_t lane = 0; lane < WF_GRAM_LANES; lane += FW) {
        vf acc[8];
        UNROLL
        for (int t = 0; t < 8; t++) {
            acc[t] = vf_set1(0);
        }
        for (ptrdiff_t i = lane; i < n; i += WF_GRAM_LANES) {
            const vf one = vf_load_f32(y + i), two = vf_load_f32(y + WF_GRAM_RUN + i);
            UNROLL
            for (int a = 0; a < 4; a++) {
                const vf v = vf_load_f32(x + a * WF_GRAM_RUN + i);
                acc[2 * a] = vf_fma(v, one, acc[2 * a]);
                acc[2 * a + 1] = vf_fma(v, two, acc[2 * a + 1]);
            }
        }
        UNROLL
        for (int t = 0; t < 8; t++) {
            float part[FW];
            double *to = sums + t / 2 * to_next_row + t % 2 * WF_GRAM_LANES + lane;
            vf_store_f32(part, acc[t]);
            for (int l = 0; l < FW; l += DW) {
                const vd more = vd_load_f32(part + l);
                vd_store_f64(to + l, vd_fma(more, vd_set1(1), vd_load_f64(to + l)));
            }
        }
    }
}

static void gram_f32(ptrdiff_t n, ptrdiff_t p, const float *x, double *sums)
{
    for (ptrdiff_t a = 0; a < p; a += WF_GRAM_TILE) {
        for (ptrdiff_t b = 0; b < a + WF_GRAM_TILE; b += 2) {
            gram_tile(n, x + a * WF_GRAM_RUN, x + b * WF_GRAM_RUN,
                      sums + (a * p + b) * WF_GRAM_LANES, p * WF_GRAM_LANES);
        }
    }
}

static void triad(ptrdiff_t n, const float *a, const float *b, float scalar, float *out)
{
    ptrdiff_t i = 0;
    for (; i < n && (uintptr_t)(out + i) % (FW * sizeof(float)); i++) {
        out[i] = __builtin_fmaf(scalar, b[i], a[i]);
    }
    const vf s = vf_set1(scalar);
    for (; i + FW <= n; i += FW) {
        vf_stream_f32(out + i, vf_fma(s, vf_load_f32(b + i), vf_load_f32(a + i)));
    }
    for (; i < n; i++) {
        out[i] = __builtin_fmaf(scalar, b[i], a[i]);
    }
}

/* -- float64 statistics: plain loops over running sums, which the compiler makes vectors of -- */

static double sum(ptrdiff_t n, const double *x)
{
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            running[l] += x[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        running[l] += x[i];
    }
    return join(running);
}

static double sum_abs(ptrdiff_t n, const double *x)
{
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            running[l] += __builtin_fabs(x[i + l]);
        }
    }
    for (int l = 0; i < n; i++, l++) {
        running[l] += __builtin_fabs(x[i]);
    }
    return join(running);
}

static double dot(ptrdiff_t n, const double *x, const double *y)
{
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            running[l] += x[i + l] * y[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        running[l] += x[i] * y[i];
    }
    return join(running);
}

static int nonfinite(ptrdiff_t n, const double *x)
{
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            running[l] += x[i + l] * 0.0;
        }
    }
    for (int l = 0; i < n; i++, l++) {
        running[l] += x[i] * 0.0;
    }
    const double total = join(running);
    return total != total;
}

static ptrdiff_t differences(ptrdiff_t n, const double *restrict a, const double *restrict b,
                             double *restrict d, double *restrict truth, double *most)
{
    double largest[WF_RUNNING_SUMS] = {0};
    int64_t left_out = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const double move = a[i] - b[i];
        const int fine = __builtin_fabs(move) <= DBL_MAX;
        d[i] = fine ? move : 0;
        truth[i] = fine ? b[i] : 0;
        left_out += fine ? 0 : 1;
    }
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            const double size = __builtin_fabs(d[i + l]);
            largest[l] = size > largest[l] ? size : largest[l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        const double size = __builtin_fabs(d[i]);
        largest[l] = size > largest[l] ? size : largest[l];
    }
    for (int l = 0; l < WF_RUNNING_SUMS; l++) {
        *most = largest[l] > *most ? largest[l] : *most;
    }
    return (ptrdiff_t)left_out;
}

static void residual(ptrdiff_t n, ptrdiff_t p, const double *const *x, const double *y,
                     const double *b, double *r)
{
    const double constant = b[p];
    if (y) {
        for (ptrdiff_t i = 0; i < n; i++) {
            r[i] = y[i] - constant;
        }
    } else {
        for (ptrdiff_t i = 0; i < n; i++) {
            r[i] = -constant;
        }
    }
    for (ptrdiff_t k = 0; k < p; k++) {
        const double *restrict column = x[k];
        double *restrict out = r;
        const double weight = b[k];
        for (ptrdiff_t i = 0; i < n; i++) {
            out[i] -= weight * column[i];
        }
    }
}

static void axpy(ptrdiff_t n, double a, const double *restrict x, double *restrict y)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        y[i] += a * x[i];
    }
}

static void whiten(ptrdiff_t n, ptrdiff_t p, const double *const *x, ptrdiff_t rank,
                   const double *L, double *u, ptrdiff_t ld, double *restrict h2)
{
    for (ptrdiff_t i = 0; i < n; i++) {
        h2[i] = 0;
    }
    for (ptrdiff_t t = 0; t < rank; t++) {
        const double *row = L + t * (p + 1);
        double *restrict out = u + t * ld;
        for (ptrdiff_t i = 0; i < n; i++) {
            out[i] = row[p];
        }
        for (ptrdiff_t k = 0; k < p; k++) {
            if (row[k] != 0) {
                axpy(n, row[k], x[k], out);
            }
        }
        for (ptrdiff_t i = 0; i < n; i++) {
            h2[i] += out[i] * out[i];
        }
    }
}

static ptrdiff_t band(ptrdiff_t n, const double *restrict r, const double *restrict h2,
                      double kappa2, double *restrict s)
{
    double kept = 0;
    double running[WF_RUNNING_SUMS] = {0};
    ptrdiff_t i = 0;
    for (; i + WF_RUNNING_SUMS <= n; i += WF_RUNNING_SUMS) {
        for (int l = 0; l < WF_RUNNING_SUMS; l++) {
            const double inside = r[i + l] * r[i + l] <= kappa2 * h2[i + l] ? 1.0 : 0.0;
            running[l] += inside;
            s[i + l] = __builtin_copysign(1.0 - inside, r[i + l]);
        }
    }
    for (; i < n; i++) {
        const double inside = r[i] * r[i] <= kappa2 * h2[i] ? 1.0 : 0.0;
        kept += inside;
        s[i] = __builtin_copysign(1.0 - inside, r[i]);
    }
    return (ptrdiff_t)(kept + join(running));
}

#include "kernels/ipm_body.h"

#define TABLE(isa) TABLE_(isa)
#define TABLE_(isa) wf_kernels_##isa
#define TEXT(isa) TEXT_(isa)
#define TEXT_(isa) #isa
const wf_kernels TABLE(ISA) = {
    .name = TEXT(ISA),
    .apply_f64 = apply_f64_kernel,
    .apply_f32 = apply_f32_kernel,
    .apply_f16 = apply_f16_kernel,
    .apply_bf16 = apply_bf16_kernel,
    .moves_f64 = moves_f64_kernel,
    .moves_f32 = moves_f32_kernel,
    .moves_f16 = moves_f16_kernel,
    .moves_bf16 = moves_bf16_kernel,
    .widen_f16 = widen_f16,
    .widen_bf16 = widen_bf16,
    .narrow_f16 = narrow_f16,
    .narrow_bf16 = narrow_bf16,
    .widen_f32 = widen_f32,
    .blend_f32 = blend_f32,
    .blend_f64 = blend_f64,
    .minus = minus,
    .gram_f32 = gram_f32,
    .triad = triad,
    .nonfinite = nonfinite,
    .differences = differences,
    .residual = residual,
    .whiten = whiten,
    .band = band,
    .sum = sum,
    .sum_abs = sum_abs,
    .dot = dot,
    .axpy = axpy,
    .ipm_weights = ipm_weights,
    .ipm_direction = ipm_direction,
    .ipm_move = ipm_move,
};
