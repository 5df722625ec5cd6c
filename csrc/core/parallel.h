/* Static threads: a call makes its threads, each takes a fixed share of the tasks, and all are
 * joined at its end. */
#ifndef WF_CORE_PARALLEL_H
#define WF_CORE_PARALLEL_H

/* Runs task(context, t) for t in 0..n_tasks-1; thread k takes k, k + n_threads, ... The calling
 * thread is thread 0. It cannot fail: where a thread can't be made, the calling one does its share.
 */
void wf_parallel(int n_tasks, int n_threads, void (*task)(void *context, int t), void *context);

#endif
