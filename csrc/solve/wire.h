/* Statistics as bytes, from one process to the others: all of one build on machines of one byte
 * order, which the head of a message (exchange.c) tells apart. */
#ifndef WF_SOLVE_WIRE_H
#define WF_SOLVE_WIRE_H

#include <stddef.h>
#include <stdint.h>

/* A message that is being written; {0} to begin with. `data` is the caller's to free. */
typedef struct {
    char *data;
    size_t size, capacity;
    int failed; /* out of memory: nothing more is written */
} wf_writer;

void wf_put(wf_writer *to, const void *from, size_t size);

/* A message that is being read. It comes from outside: whoever reads checks every number. */
typedef struct {
    const char *at;
    size_t left;
    ptrdiff_t rows; /* of the process that it comes from */
} wf_message;

/* The next bytes of a message, of any alignment, or NULL where it ends before. */
const char *wf_take(wf_message *message, size_t size);
/* The next bytes into `to`; 0 where the message ends before. */
int wf_read(wf_message *message, void *to, size_t size);

/* Of the bits of n values, after what `seed` is the digest of. */
uint64_t wf_digest(uint64_t seed, const double *values, ptrdiff_t n);

#endif
