/* After a band pass: the lanes of every band into one. */
#ifndef WF_SOLVE_LAD_JOIN_H
#define WF_SOLVE_LAD_JOIN_H

#include "solve/method.h"

/* Into `joined` of every active unit: kept rows column by column, as the interior point method
 * wants them, and behind them one row of every cell in use. */
wf_status wf_band_join(wf_fit *fit);

#endif
