/* wfcast: the whole C interface. No Python, no intrinsics.
 *
 * Data is a table of columns: p inputs, then m targets or outputs, all of one N-d shape, each with
 * its own dtype and byte strides. A row is one scalar weight. Nothing is copied: a table only
 * points.
 *
 * Functions that can fail return wf_status and put their results last. What went wrong where is in
 * a wf_fault. */
#ifndef WFCAST_H
#define WFCAST_H

#include <stddef.h>
#include <stdint.h>

typedef enum {
    WF_OK = 0,
    WF_NO_MEMORY,     /* an allocation failed; nothing was changed that the caller can see */
    WF_NONFINITE_IN,  /* an input or target holds NaN or infinity: see the wf_fault */
    WF_NONFINITE_OUT, /* an output does not fit its dtype: see the wf_fault */
    WF_BAD_GROUP,     /* a trajectory number outside 0..S-1: see the wf_fault */
    WF_INTERRUPTED,   /* the caller's interrupt function asked to stop */
    WF_BAD_SEGMENTS,  /* a pass did not bring the rows that the solver was made for */
    WF_BAD_MESSAGE    /* statistics of another fit, or of another pass */
} wf_status;

typedef enum { WF_F64, WF_F32, WF_F16, WF_BF16, WF_I64 } wf_dtype;

#define WF_MAX_DIMS 64

typedef struct {
    char *data;
    wf_dtype dtype;
    ptrdiff_t strides[WF_MAX_DIMS]; /* in bytes; any sign, zero to broadcast */
} wf_column;

typedef struct {
    int ndim;
    ptrdiff_t shape[WF_MAX_DIMS];
    ptrdiff_t n_rows; /* product of shape; fits ptrdiff_t in bytes of the widest dtype */
    ptrdiff_t n_columns;
    wf_column *columns; /* not owned */
} wf_table;

typedef struct {
    ptrdiff_t column; /* in the table at fault */
    ptrdiff_t row;    /* in C order of the shape */
} wf_fault;

/* -- setup -- */

/* Build the kernel table once. `disabled` is a comma separated list of instruction set names, or
 * NULL. */
void wf_setup(const char *disabled);
/* Names of the instruction sets that this build holds and this machine can run, best first;
 * NULL-terminated. */
const char *const *wf_isa_available(void);
const char *wf_isa(void);
/* 0, or -1 when `name` is not available. For tests and comparisons; not to be called while kernels
 * run. */
int wf_isa_select(const char *name);
int wf_cpu_count(void);
const char *wf_blas_config(void);

/* -- one sweep over a table -- */

typedef enum { WF_OVERLAP_NONE, WF_OVERLAP_SAME, WF_OVERLAP_PARTIAL } wf_overlap;
/* How column a and column b of one shape share memory: not at all, exactly, or in a way that no
 * sweep can serve. */
wf_overlap wf_column_overlap(const wf_table *table, ptrdiff_t a, ptrdiff_t b);
/* 1 unless every dimension of a column steps past all that lies inside it: rows may share memory,
 * as in broadcast and sliding views. */
int wf_column_overlaps_itself(const wf_table *table, ptrdiff_t c);

typedef struct {
    double move_sq; /* sum (y - x)^2 */
    double last_sq; /* sum x^2 */
} wf_moves;
/* outputs_j = intercept_j + sum_k coef_jk inputs_k for the first p columns of `table` as inputs and
 * the other n_columns - p as outputs. coef is m x p, row-major. Computed in float32 with fused
 * multiply-add unless a column is float64, then in float64; rounded once, to nearest even. With
 * check_finite the inputs and outputs are checked in the same sweep, or in a first sweep of its own
 * where an output is an input.
 *
 * Where the coefficients of each output sum to 1 and no intercept is added, as of lines and averages,
 * the differences from the input of the largest coefficients are multiplied instead: inputs that
 * are equal give themselves to the bit.
 *
 * `moves` is NULL, or takes sums, in float64, of the one output y as rounded and the last input x
 * as it was. Rows where y - x is not finite take no part. No sum depends on n_threads, on the
 * instruction set or on where in memory the columns lie. */
wf_status wf_apply(const wf_table *table, ptrdiff_t p, const double *coef, const double *intercept,
                   int check_finite, int n_threads, wf_moves *moves, wf_fault *fault);

/* averages_j += c_j (w - averages_j) in place, for k averages of each tensor: n tables of a column w
 * and its averages, which are memory of their own. In float32, or in float64 where a column of the
 * tensor is; c_j = 1 sets an average to w whatever it held, c_j = 0 leaves it. Rounded once to the
 * average's dtype, to nearest even. The order of the rows in `tensors` may change. *nonfinite: the
 * first tensor whose w holds NaN or infinity, or -1; its averages now hold them, too. */
enum { WF_MOST_AVERAGES = 16 };
void wf_blend(wf_table *tensors, ptrdiff_t n_tensors, ptrdiff_t k, const double *c, int n_threads,
              ptrdiff_t *nonfinite);

typedef struct {
    double sum_abs, sum_sq, max_abs; /* of a - b */
    double sum_b, sum_b_sq;
    int64_t n, n_nonfinite; /* rows where a - b is not finite take no part in the sums */
} wf_errors;
/* Error sums of column 0 against column 1, in float64. */
wf_status wf_error_sums(const wf_table *table, int n_threads, wf_errors *out);

/* out (p x m, row-major) = sums of products of the first p columns with the other m, or, where
 * there are no others, with themselves (p x p); in float64. NaN and infinity are refused.
 *
 * less: the table holds one more column at the end, which is taken off all others first. The p x p
 * products of long columns without float64 are then of float32, added up in float64 every 512 rows:
 * off by at most 3e-6 of the norms' product, by 1e-7 as a rule. */
wf_status wf_gram(const wf_table *table, ptrdiff_t p, int less, int n_threads, double *out,
                  wf_fault *fault);

/* The states w_0 .. w_{n-1} of a run, the columns, and their moves e_k = w_k - w_{k-1} against those
 * of the halves, a = w_middle - w_0 and b = w_{n-1} - w_middle; e_0 stands for w_{n-1} - w_0. Row k
 * of out (n x WF_HALVES, row-major) holds the sums of w_k^2, e_k^2, e_k a and e_k b, and how many
 * e_k are not 0; in float64. NaN and infinity are refused. */
enum { WF_HALVES = 5 };
wf_status wf_halves(const wf_table *table, ptrdiff_t middle, int n_threads, double *out,
                    wf_fault *fault);

/* out = a + scalar * b over n bytes of float32 with non-temporal stores: the bandwidth that others
 * are held to. */
void wf_triad(float *out, const float *a, const float *b, float scalar, ptrdiff_t n, int n_threads);

/* -- fit: a pass-based solver -- */

typedef enum { WF_ABSOLUTE_ERROR, WF_SQUARED_ERROR } wf_loss;

typedef struct {
    wf_loss loss;
    ptrdiff_t p, m;
    ptrdiff_t n_rows;           /* over all segments, of all processes */
    ptrdiff_t n_here;           /* of this process; n_rows where there is but one */
    ptrdiff_t n_groups;         /* S; 0 when beta is 0 */
    const double *first_update; /* (S) the c_s; copied */
    double beta, alpha, tol;
    int fit_intercept;
    int n_threads;
} wf_fit_options;

typedef struct {
    double objective, dual_gap;
    ptrdiff_t n_passes, rank;
    int converged;
} wf_fit_info;

typedef struct wf_fit wf_fit;

wf_status wf_fit_new(const wf_fit_options *options, wf_fit **out);
void wf_fit_free(wf_fit *fit);
int wf_fit_needs_pass(const wf_fit *fit);
/* One segment of a pass, whose first row is row `start` of the whole fit; start < 0: the row after
 * those that came before. The table holds p + m columns, and one more of WF_I64 trajectory numbers
 * when group < 0 and the fit has groups; group >= 0 places the whole segment in that trajectory. */
wf_status wf_fit_accumulate(wf_fit *fit, const wf_table *segment, ptrdiff_t group, ptrdiff_t start,
                            wf_fault *fault);
/* Where the rows of a fit lie with several processes, each of them gathers the statistics of its
 * own, between the last segment and wf_fit_advance all hand them to each other, and every one goes
 * on with the same union. Export gives the statistics of this process, which the caller frees;
 * absorb puts those of all processes, in one order everywhere, in the place of its own. */
wf_status wf_fit_export(const wf_fit *fit, char **data, size_t *size);
wf_status wf_fit_absorb(wf_fit *fit, ptrdiff_t n_messages, const char *const *data,
                        const size_t *size);
/* Ends the pass. `interrupt` (may be NULL) is polled by any of the threads at work; nonzero stops
 * with WF_INTERRUPTED. */
wf_status wf_fit_advance(wf_fit *fit, int (*interrupt)(void *), void *context);
/* coef (m x p, row-major) and intercept (m). Only after wf_fit_needs_pass has become 0. */
void wf_fit_result(const wf_fit *fit, double *coef, double *intercept, wf_fit_info *info);
/* Directions in which a target's coefficients and intercept can change without a change of any
 * forecast, where inputs depend on each other: up to p + 1 independent vectors of p + 1 numbers, the
 * intercept's last, into `out`; returns how many. */
ptrdiff_t wf_fit_null(const wf_fit *fit, double *out);

#endif
