/* The BLAS library as a whole: how many threads it may use, and which it is. */
#include "solve/blas.h"

#include <pthread.h>

#include "wfcast.h"

static void set_threads(void)
{
    WF_BLAS(openblas_set_num_threads)(1);
}

void wf_blas_begin(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, set_threads);
}

const char *wf_blas_config(void)
{
    return WF_BLAS(openblas_get_config)();
}
