/* What a squared_error fit holds, for all files of this folder. */
#ifndef WF_SOLVE_LEAST_SQUARES_STATE_H
#define WF_SOLVE_LEAST_SQUARES_STATE_H

#include <stddef.h>

typedef struct {
    int refining; /* second pass: exact residuals of the first solution */
    int have_shift;
    ptrdiff_t width; /* of a lane, p * (p + m) + p + 2 m: Gram and cross products, sums, and sums
                        of squares of the targets */
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
} wf_least_squares;

#endif
