/* absolute_error: the paper's objective, least absolute deviations with the hinge, exactly. */
#ifndef WF_SOLVE_LAD_LAD_H
#define WF_SOLVE_LAD_LAD_H

#include "solve/method.h"

extern const wf_method wf_lad_method;

#endif
