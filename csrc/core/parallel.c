/* Threads for one call, joined at its end; see parallel.h. */
#include "core/parallel.h"

#include <assert.h>
#include <pthread.h>

#define MAX_THREADS 256 /* their bookkeeping is on the stack; more share nothing worth having */

typedef struct {
    void (*task)(void *, int);
    void *context;
    int first, step, n_tasks;
} share;

static void *run_share(void *argument)
{
    const share *mine = argument;
    for (int t = mine->first; t < mine->n_tasks; t += mine->step) {
        mine->task(mine->context, t);
    }
    return NULL;
}

void wf_parallel(int n_tasks, int n_threads, void (*task)(void *context, int t), void *context)
{
    assert(n_tasks >= 0 && task);
    if (n_threads > n_tasks) {
        n_threads = n_tasks;
    }
    if (n_threads > MAX_THREADS) {
        n_threads = MAX_THREADS;
    }
    if (n_threads < 1) {
        n_threads = 1;
    }
    share shares[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started[MAX_THREADS] = {0};
    for (int k = 0; k < n_threads; k++) {
        shares[k] = (share){task, context, k, n_threads, n_tasks};
    }
    for (int k = 1; k < n_threads; k++) {
        started[k] = pthread_create(&threads[k], NULL, run_share, &shares[k]) == 0;
    }
    run_share(&shares[0]);
    for (int k = 1; k < n_threads; k++) {
        if (started[k]) {
            pthread_join(threads[k], NULL);
        } else {
            run_share(&shares[k]);
        }
    }
}
