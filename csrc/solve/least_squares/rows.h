/* squared_error with fewer rows than unknowns. */
#ifndef WF_SOLVE_LEAST_SQUARES_ROWS_H
#define WF_SOLVE_LEAST_SQUARES_ROWS_H

#include "solve/method.h"

/* The solution from s->rows, which are centred in place: coefficients, intercept and rank; N m F,
 * N m (F - F*) (NaN where products leave the range of float64), and the targets' sum of squares. */
wf_status wf_least_squares_solve_rows(wf_fit *fit, double *total, double *above, double *size);

#endif
