/* squared_error: least squares, with a ridge penalty or without. */
#ifndef WF_SOLVE_LEAST_SQUARES_H
#define WF_SOLVE_LEAST_SQUARES_H

#include "solve/method.h"

extern const wf_method wf_least_squares_method;

#endif
