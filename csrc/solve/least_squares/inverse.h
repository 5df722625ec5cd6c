/* The inverse of the normal equations' matrix of squared_error. */
#ifndef WF_SOLVE_LEAST_SQUARES_INVERSE_H
#define WF_SOLVE_LEAST_SQUARES_INVERSE_H

#include "solve/method.h"

/* From s->gram: s->inverse = (gram + alpha I)^+, s->null an orthonormal basis of the null space,
 * and the rank. NaN where the matrix is none. */
wf_status wf_least_squares_invert(wf_fit *fit);

#endif
