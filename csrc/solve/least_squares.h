/* The state of a squared_error fit, shared by least_squares.c and least_squares_part.c. */
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
};

#endif
