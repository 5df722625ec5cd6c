/* The intercept of squared_error. */
#ifndef WF_SOLVE_LEAST_SQUARES_INTERCEPT_H
#define WF_SOLVE_LEAST_SQUARES_INTERCEPT_H

#include "solve/method.h"

/* From the coefficients, s->shift and s->mean; left alone without an intercept. */
void wf_least_squares_set_intercept(wf_fit *fit);

#endif
