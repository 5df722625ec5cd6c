/* Statistics of a pass as bytes, from one process to the others. */
#ifndef WF_SOLVE_PART_H
#define WF_SOLVE_PART_H

#include "solve/fit.h"

typedef struct {
    char *data;
    size_t size, capacity;
    int failed; /* out of memory */
} wf_writer;

void wf_put(wf_writer *to, const void *from, size_t size);

typedef struct {
    const char *at;
    size_t left;
    ptrdiff_t rows; /* of the process that it comes from */
} wf_part;

/* The next bytes of a part, of any alignment, or NULL where it ends before. */
const char *wf_take(wf_part *part, size_t size);
/* The next bytes into `to`; 0 where the part ends before. */
int wf_read(wf_part *part, void *to, size_t size);

uint64_t wf_digest(uint64_t seed, const double *values, ptrdiff_t n);

/* What must be the same for statistics to go together. */
uint64_t wf_lad_state(const wf_fit *fit);
uint64_t wf_least_squares_state(const wf_fit *fit);

wf_status wf_lad_export(const wf_fit *fit, wf_writer *to);
wf_status wf_least_squares_export(const wf_fit *fit, wf_writer *to);
wf_status wf_lad_absorb(wf_fit *fit, ptrdiff_t n_parts, wf_part *part);
wf_status wf_least_squares_absorb(wf_fit *fit, ptrdiff_t n_parts, wf_part *part);

#endif
