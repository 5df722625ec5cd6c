/* Whitening: the change of unknowns in which a step of length d moves no residual by more than
 * h d, h the size of the whitened row. */
#ifndef WF_SOLVE_LAD_WHITEN_H
#define WF_SOLVE_LAD_WHITEN_H

#include "solve/method.h"

/* L, null, span and rank from the sample. */
wf_status wf_whiten_sample(wf_fit *fit);
/* The same from the sample and the rows found outside its span. */
wf_status wf_whiten_strays(wf_fit *fit);
/* b (p + 1) += L'z: a step in whitened unknowns, in those of the columns. */
void wf_unwhiten(const wf_fit *fit, const double *z, double *b);

#endif
