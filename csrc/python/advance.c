/* The end of a pass, in a thread of its own: LAPACK can't be broken off, and Ctrl-C must not wait
 * for it. The calling thread looks for signals; where the worker doesn't stop soon after one, the
 * solver is left to it, and it frees it when it is through. */
#include "python/common.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

/* How often the calling thread looks for signals: often enough to seem to answer at once. And how
 * long a worker has to come to a place where it reads `stop`: a few iterations of the solver. */
enum { LOOK_MS = 50, PATIENCE_MS = 400 };

typedef struct {
    wf_fit *fit;
    wf_status status;
    int done, left; /* under the lock: the worker is through; the caller no longer waits */
    atomic_int stop;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} advance_job;

/* Workers that nobody waits for. The process's end does: BLAS takes its memory back there. */
static atomic_int strays;
static pthread_once_t exit_is_set = PTHREAD_ONCE_INIT;

static void wait_for_strays(void)
{
    const struct timespec pause = {0, 10 * 1000 * 1000};
    while (atomic_load(&strays) > 0) {
        nanosleep(&pause, NULL);
    }
}

static void forget_strays(void) /* in a forked child, which has no such thread */
{
    atomic_store(&strays, 0);
}

static void set_exit(void)
{
    atexit(wait_for_strays);
    pthread_atfork(NULL, NULL, forget_strays);
}

static int asked_to_stop(void *context)
{
    return atomic_load(&((advance_job *)context)->stop);
}

static void end_job(advance_job *job)
{
    pthread_cond_destroy(&job->changed);
    pthread_mutex_destroy(&job->lock);
    free(job);
}

static void *work(void *argument)
{
    advance_job *job = argument;
    job->status = wf_fit_advance(job->fit, asked_to_stop, job);
    pthread_mutex_lock(&job->lock);
    job->done = 1;
    const int left = job->left;
    pthread_cond_signal(&job->changed);
    pthread_mutex_unlock(&job->lock);
    if (left) {
        wf_fit_free(job->fit);
        end_job(job);
        atomic_fetch_sub(&strays, 1);
    }
    return NULL;
}

/* Waits by a clock that nobody sets. macOS has none for conditions, but there one waits for a span
 * of time instead of a point in it. */
#if defined(__APPLE__)
#define WAIT pthread_cond_timedwait_relative_np

static struct timespec limit_of(int milliseconds)
{
    return (struct timespec){0, milliseconds * 1000000L};
}

static void init_condition(pthread_cond_t *condition)
{
    pthread_cond_init(condition, NULL);
}
#else
#define WAIT pthread_cond_timedwait

static struct timespec limit_of(int milliseconds)
{
    struct timespec limit;
    clock_gettime(CLOCK_MONOTONIC, &limit);
    limit.tv_nsec += milliseconds * 1000000L;
    limit.tv_sec += limit.tv_nsec / 1000000000L;
    limit.tv_nsec %= 1000000000L;
    return limit;
}

static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}
#endif

/* Waits for the worker, at most so long (below a second); nonzero when it is through. */
static int wait_for(advance_job *job, int milliseconds)
{
    const struct timespec limit = limit_of(milliseconds);
    pthread_mutex_lock(&job->lock);
    int late = 0;
    while (!job->done && !late) {
        late = WAIT(&job->changed, &job->lock, &limit) != 0;
    }
    const int done = job->done;
    pthread_mutex_unlock(&job->lock);
    return done;
}

/* Nonzero if the worker is on its own from here on. */
static int leave(advance_job *job)
{
    pthread_once(&exit_is_set, set_exit);
    pthread_mutex_lock(&job->lock);
    const int left = job->left = !job->done;
    if (left) {
        atomic_fetch_add(&strays, 1);
    }
    pthread_mutex_unlock(&job->lock);
    return left;
}

static advance_job *new_job(wf_fit *fit)
{
    advance_job *job = calloc(1, sizeof *job);
    if (!job) {
        return NULL;
    }
    job->fit = fit;
    atomic_init(&job->stop, 0);
    pthread_mutex_init(&job->lock, NULL);
    init_condition(&job->changed);
    return job;
}

/* With room for LAPACK, whose arrays lie on the stack: musl gives a thread 128 KiB of it. */
static int start_worker(pthread_t *thread, advance_job *job)
{
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, (size_t)8 << 20);
    const int status = pthread_create(thread, &attributes, work, job);
    pthread_attr_destroy(&attributes);
    return status;
}

wf_status wf_advance(wf_fit **fit)
{
    advance_job *job = new_job(*fit);
    if (!job) {
        return WF_NO_MEMORY;
    }
    pthread_t thread;
    if (start_worker(&thread, job) != 0) { /* no thread to be had: without it */
        work(job);
        const wf_status status = job->status;
        end_job(job);
        return status;
    }
    PyThreadState *python = PyEval_SaveThread();
    int done = wait_for(job, LOOK_MS), interrupted = 0;
    while (!done && !interrupted) {
        PyEval_RestoreThread(python);
        interrupted = PyErr_CheckSignals() != 0;
        python = PyEval_SaveThread();
        atomic_store(&job->stop, interrupted);
        done = wait_for(job, interrupted ? PATIENCE_MS : LOOK_MS);
    }
    wf_status status = WF_INTERRUPTED;
    if (!done && leave(job)) {
        pthread_detach(thread);
        *fit = NULL;
    } else {
        pthread_join(thread, NULL);
        status = interrupted ? WF_INTERRUPTED : job->status;
        end_job(job);
    }
    PyEval_RestoreThread(python);
    return status;
}
