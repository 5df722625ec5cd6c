/* The memory-bound loops, one table of them per instruction set. Kernels cannot fail, allocate or
 * lock. They work on contiguous runs; packing strided data into runs is up to the caller
 * (core/table.h, kernels/pack.h).
 *
 * Every float kernel uses fused multiply-add, element by element in one fixed order, and every
 * float64 reduction uses WF_RUNNING_SUMS running sums joined in one fixed order, so all instruction
 * sets give the same bits. */
#ifndef WF_KERNELS_H
#define WF_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define WF_RUNNING_SUMS 8

typedef struct {
    int check; /* look at all */
    int bad;   /* an input or an output, once rounded, is not finite */
} wf_finite;

/* y_j = b_j + a_jq x_q + sum_k a_jk (x_k - c x_q) for n elements, with q = p - 1, k < q, and c = 1
 * where `centred`, else 0. stream: write y with non-temporal stores (the caller fences). x and y
 * point to elements of the kernel's dtype, a (m x p) and b (m) to its compute type: float, or double
 * for f64. A y_j may be an x_k only when m <= WF_APPLY_OUTPUTS, for then all inputs are read before
 * the outputs are written. */
#define WF_APPLY_OUTPUTS 4
#define WF_APPLY_INPUTS 3 /* kernels of their own for up to so many */
typedef void wf_apply_kernel(ptrdiff_t n, ptrdiff_t p, const void *const *x, ptrdiff_t m,
                             const void *a, const void *b, int centred, void *const *y, int stream,
                             wf_finite *finite);

/* The same for m = 1, p >= 1 and a y that is no x, with sums[0] = sum (y - x)^2 of y as rounded and
 * x = x_last, and sums[1] = sum x^2. Element i counts in lane i % WF_MOVE_LANES, of the compute
 * type for WF_MOVE_RUN elements, then of float64. For float: relative error below 1e-6, where no
 * square leaves the normal range. stream: y is aligned to a cache line. */
enum { WF_MOVE_LANES = 32, WF_MOVE_RUN = 512 };
typedef void wf_moves_kernel(ptrdiff_t n, ptrdiff_t p, const void *const *x, const void *a,
                             const void *b, int centred, ptrdiff_t last, void *y, int stream,
                             wf_finite *finite, double *sums);

enum { WF_GRAM_RUN = 512, WF_GRAM_LANES = 16, WF_GRAM_TILE = 4 };

/* Rows of an interior point method, and a direction from where they are (solve/ipm/state.h). */
enum { WF_IPM_CHUNK = 256 }; /* rows worked on at a time: a handful of them fit the first cache */

typedef struct {
    double *rp, *rm, *sp, *sm;
    double *weight; /* on the central path rp sp = rm sm = weight * mu */
    double *rho;    /* what the row equation misses */
    /* The step. After the first direction drp and drm hold the second-order corrections of the two
     * products, which the second direction reads. */
    double *da, *drp, *drm;
} wf_ipm_rows;

typedef struct {
    double primal, dual; /* largest relative decrease of rp and rm, of sp and sm; not below 0 */
    double sums[3];      /* of products: x ds, s dx, dx ds */
} wf_ipm_direction;

typedef struct {
    const char *name;
    wf_apply_kernel *apply_f64, *apply_f32, *apply_f16, *apply_bf16;
    wf_moves_kernel *moves_f64, *moves_f32, *moves_f16, *moves_bf16;

    void (*widen_f16)(ptrdiff_t n, const void *src, float *dst);
    void (*widen_bf16)(ptrdiff_t n, const void *src, float *dst);
    void (*narrow_f16)(ptrdiff_t n, const float *src, void *dst);
    void (*narrow_bf16)(ptrdiff_t n, const float *src, void *dst);
    void (*widen_f32)(ptrdiff_t n, const void *src, double *dst);

    /* a_j += c_j (w - a_j) for j < k; nonzero where w is not finite somewhere. */
    int (*blend_f32)(ptrdiff_t n, const float *w, ptrdiff_t k, const float *c, float *const *a);
    int (*blend_f64)(ptrdiff_t n, const double *w, ptrdiff_t k, const double *c, double *const *a);

    /* out = x - base, and the next WF_GRAM_RUN elements of x are fetched meanwhile. */
    void (*minus)(ptrdiff_t n, const float *x, const float *base, float *out);
    /* sums[a][b][l] += x_a x_b, b <= a, over the rows i of i % WF_GRAM_LANES = l: p columns (whole
     * tiles) WF_GRAM_RUN elements apart, n <= WF_GRAM_RUN a multiple of WF_GRAM_LANES. */
    void (*gram_f32)(ptrdiff_t n, ptrdiff_t p, const float *x, double *sums);

    void (*triad)(ptrdiff_t n, const float *a, const float *b, float scalar, float *out);

    /* 1 when one of n values is NaN or infinite. */
    int (*nonfinite)(ptrdiff_t n, const double *x);
    /* Differences d = a - b and b itself, both 0 where d is not finite; returns how many are not, and
     * lifts *most to the largest |d|. */
    ptrdiff_t (*differences)(ptrdiff_t n, const double *a, const double *b, double *d,
                             double *truth, double *most);
    /* r = y - b_p - sum_k b_k x_k; y may be NULL for zeros. */
    void (*residual)(ptrdiff_t n, ptrdiff_t p, const double *const *x, const double *y,
                     const double *b, double *r);
    /* Whitened rows u_t = sum_k L_tk x_k + L_tp, t < rank, and h2 = sum_t u_t^2. L is rank x (p +
     * 1), u holds rank columns of `ld` elements. */
    void (*whiten)(ptrdiff_t n, ptrdiff_t p, const double *const *x, ptrdiff_t rank,
                   const double *L, double *u, ptrdiff_t ld, double *h2);
    /* s = 0 where r^2 <= kappa2 * h2 (kept), else the sign of r; returns how many are kept. */
    ptrdiff_t (*band)(ptrdiff_t n, const double *r, const double *h2, double kappa2, double *s);
    double (*sum)(ptrdiff_t n, const double *x);
    double (*sum_abs)(ptrdiff_t n, const double *x);
    double (*dot)(ptrdiff_t n, const double *x, const double *y);
    /* y += a x */
    void (*axpy)(ptrdiff_t n, double a, const double *x, double *y);

    /* For up to WF_IPM_CHUNK rows from `at` on: the weights of the normal equations, and what their
     * right-hand side multiplies the rows with. */
    void (*ipm_weights)(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, double target,
                        int corrected, double *w, double *e);
    /* From t_i = x_i'dz and the steps of the hinges' multipliers to those of the rows. */
    void (*ipm_direction)(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, const double *t,
                          const double *dlambda, double target, int corrected,
                          wf_ipm_direction *direction);
    /* Takes the steps, and lifts products below `least` of weight * mu. */
    void (*ipm_move)(ptrdiff_t n, const wf_ipm_rows *rows, ptrdiff_t at, const double *dlambda,
                     double primal, double dual, double mu, double least);
} wf_kernels;

/* The table in use. Set once by wf_setup, and by wf_isa_select in tests. */
extern const wf_kernels *wf_k;

extern const wf_kernels wf_kernels_scalar;
#if defined(__x86_64__) || defined(_M_X64)
#define WF_X86 1
extern const wf_kernels wf_kernels_avx2;
extern const wf_kernels wf_kernels_avx512;
#elif defined(__aarch64__)
#define WF_ARM64 1
extern const wf_kernels wf_kernels_neon;
#endif

#endif
