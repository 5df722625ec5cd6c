/* The state of a squared_error fit, shared by the files least_squares*.c. */
#ifndef WF_SOLVE_LEAST_SQUARES_H
#define WF_SOLVE_LEAST_SQUARES_H

#include "solve/fit.h"

struct wf_least_squares {
    int refining; /* second pass: exact residuals of the first solution */
    int have_shift;
    ptrdiff_t width; /* p * (p + m) + p + 2 m: Gram and cross products, sums, sums of squares of
                        targets */
    ptrdiff_t lanes;
    double *shift;        /* p + m */
    double *lane;         /* lanes x width */
    double *gram, *cross; /* centred: p x p, p x m */
    double *mean;         /* p + m, of shifted columns */
    double *square;       /* m: centred sums of squares of the targets */
    double *inverse;      /* p x p: (pseudo-)inverse of gram + alpha I */
    double *null;         /* p x n_null, orthonormal */
    ptrdiff_t n_null;
    double *rows; /* fewer rows than unknowns: n_here, after an exchange all n_rows, x (p + m),
                     column-major, and of the rest only shift and mean; else NULL */
};

/* The solution from s->rows, which are centred in place: coefficients, intercept and rank; N m F,
 * N m (F - F*) (NaN where products leave the range of float64), and the targets' sum of squares. */
wf_status wf_least_squares_solve_rows(wf_fit *fit, double *total, double *above, double *size);

#endif
