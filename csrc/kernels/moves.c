/* How far forecasts are from the last input; see moves.h. */
#include "kernels/moves.h"

#include <math.h>
#include <string.h>

#include "core/table.h"
#include "kernels/kernels.h"

enum { CHUNK = 512 }; /* elements widened through the stack at a time */

static void widen(wf_dtype dtype, ptrdiff_t n, const char *src, double *dst)
{
    float single[CHUNK];
    switch (dtype) {
    case WF_F64:
        memcpy(dst, src, (size_t)n * sizeof *dst);
        return;
    case WF_F16:
        wf_k->widen_f16(n, src, single);
        break;
    case WF_BF16:
        wf_k->widen_bf16(n, src, single);
        break;
    default:
        memcpy(single, src, (size_t)n * sizeof *single);
        break;
    }
    wf_k->widen_f32(n, single, dst);
}

wf_moves wf_moves_between(wf_dtype dtype, ptrdiff_t n, const void *y, const void *x)
{
    wf_moves sums = {0, 0};
    double move[CHUNK], last[CHUNK];
    const ptrdiff_t size = wf_item_size(dtype);
    for (ptrdiff_t i = 0; i < n; i += CHUNK) {
        const ptrdiff_t count = n - i < CHUNK ? n - i : CHUNK;
        widen(dtype, count, (const char *)y + i * size, move);
        widen(dtype, count, (const char *)x + i * size, last);
        for (ptrdiff_t l = 0; l < count; l++) {
            move[l] -= last[l];
            last[l] = isfinite(move[l]) ? last[l] : 0;
            move[l] = isfinite(move[l]) ? move[l] : 0;
        }
        sums.move_sq += wf_k->dot(count, move, move);
        sums.last_sq += wf_k->dot(count, last, last);
    }
    return sums;
}
