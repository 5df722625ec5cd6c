/* The rows and sums of an absolute_error pass, between processes: three entries of the method's
 * table. */
#ifndef WF_SOLVE_LAD_EXCHANGE_H
#define WF_SOLVE_LAD_EXCHANGE_H

#include "solve/method.h"

uint64_t wf_lad_state(const wf_fit *fit);
wf_status wf_lad_export(const wf_fit *fit, wf_writer *to);
wf_status wf_lad_absorb(wf_fit *fit, ptrdiff_t n_messages, wf_message *message);

#endif
