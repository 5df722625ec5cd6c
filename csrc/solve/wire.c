/* Put, take, read, digest: the bytes of a message. */
#include "solve/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void wf_put(wf_writer *to, const void *from, size_t size)
{
    assert(from || size == 0);
    if (to->failed || size == 0) {
        return;
    }
    if (to->size + size > to->capacity) {
        const size_t capacity = to->size + size + to->capacity / 2;
        char *data = realloc(to->data, capacity);
        if (!data) {
            to->failed = 1;
            return;
        }
        to->data = data;
        to->capacity = capacity;
    }
    memcpy(to->data + to->size, from, size);
    to->size += size;
}

const char *wf_take(wf_message *message, size_t size)
{
    if (size > message->left) {
        return NULL;
    }
    const char *at = message->at;
    message->at += size;
    message->left -= size;
    return at;
}

int wf_read(wf_message *message, void *to, size_t size)
{
    const char *from = wf_take(message, size);
    if (from && size) {
        memcpy(to, from, size);
    }
    return from != NULL;
}

/* FNV-1a (Fowler, Noll and Vo, draft-eastlake-fnv) over words instead of bytes, with its 64-bit
 * prime. The shift brings the upper half, where a product ends up, down to the lower one. */
uint64_t wf_digest(uint64_t seed, const double *values, ptrdiff_t n)
{
    assert(n >= 0);
    for (ptrdiff_t i = 0; i < n; i++) {
        uint64_t word;
        memcpy(&word, values + i, sizeof word);
        seed = (seed ^ word) * 0x100000001b3u;
        seed ^= seed >> 32;
    }
    return seed;
}
