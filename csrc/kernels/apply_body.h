/* Stamps one apply kernel. The includer defines NAME(x) to suffix names, T the element type, C the
 * compute type, V and W its vector and lanes, SET1, FMA, BEYOND, ANY, LOAD, STORE, STREAM, and
 * LIMIT: the largest size that rounds to a finite T. */

/* `part` < W elements at `at`, through buffers: the unaligned head and the tail, with the
 * arithmetic of the rest. */
static inline void NAME(edge)(ptrdiff_t part, ptrdiff_t at, ptrdiff_t p, const T *const *x, int r,
                              const C *a, const C *b, T *const *y, wf_finite *finite)
{
    T buffer[W] = {0};
    V acc[WF_APPLY_OUTPUTS];
    for (int j = 0; j < r; j++) {
        acc[j] = SET1(b[j]);
    }
    V taint = SET1(0);
    for (ptrdiff_t k = 0; k < p; k++) {
        memcpy(buffer, x[k] + at, (size_t)part * sizeof(T));
        const V v = LOAD(buffer);
        taint = FMA(v, SET1(0), taint);
        for (int j = 0; j < r; j++) {
            acc[j] = FMA(v, SET1(a[j * p + k]), acc[j]);
        }
    }
    finite->bad_in |= ANY(BEYOND(vmask_none(), taint, 0));
    for (int j = 0; j < r; j++) {
        T out[W];
        STORE(out, acc[j]);
        memcpy(y[j] + at, out, (size_t)part * sizeof(T));
        finite->bad_out |=
            ANY(BEYOND(vmask_none(), acc[j], LIMIT)); /* unused lanes: b_j, see apply() */
    }
}

/* r outputs over n elements. p (up to 3; else it varies) and r are constants once inlined. */
static inline __attribute__((always_inline)) void NAME(group)(ptrdiff_t n, ptrdiff_t p,
                                                              const T *const *x, int r, const C *a,
                                                              const C *b, T *const *y, int stream,
                                                              int check, wf_finite *finite)
{
    ptrdiff_t at = 0;
    if (stream) {
        const size_t rest = (uintptr_t)y[0] % (W * sizeof(T));
        for (int j = 1; j < r; j++) {
            stream = stream && (uintptr_t)y[j] % (W * sizeof(T)) == rest;
        }
        if (stream && rest) {
            at = (ptrdiff_t)(W - rest / sizeof(T));
            at = at < n ? at : n;
            NAME(edge)(at, 0, p, x, r, a, b, y, finite);
        }
    }
    V bias[WF_APPLY_OUTPUTS], weight[3 * WF_APPLY_OUTPUTS]; /* registers, where p and r are small */
    const T *column[3] = {0};
    for (int j = 0; j < r; j++) {
        bias[j] = SET1(b[j]);
        for (ptrdiff_t k = 0; p <= 3 && k < p; k++) {
            weight[j * p + k] = SET1(a[j * p + k]);
            column[k] = x[k];
        }
    }
    const V zero = SET1(0);
    V taint = zero; /* becomes NaN once an input is not finite */
    vmask over = vmask_none();
    for (; at + W <= n; at += W) {
        V acc[WF_APPLY_OUTPUTS];
        for (int j = 0; j < r; j++) {
            acc[j] = bias[j];
        }
        for (ptrdiff_t k = 0; k < p; k++) {
            const V v = LOAD((p <= 3 ? column[k] : x[k]) + at);
            if (check) {
                taint = FMA(v, zero, taint);
            }
            for (int j = 0; j < r; j++) {
                acc[j] = FMA(v, p <= 3 ? weight[j * p + k] : SET1(a[j * p + k]), acc[j]);
            }
        }
        for (int j = 0; j < r; j++) {
            if (check) {
                over = BEYOND(over, acc[j], LIMIT);
            }
            if (stream) {
                STREAM(y[j] + at, acc[j]);
            } else {
                STORE(y[j] + at, acc[j]);
            }
        }
    }
    finite->bad_in |= ANY(BEYOND(vmask_none(), taint, 0));
    finite->bad_out |= ANY(over);
    if (at < n) {
        NAME(edge)(n - at, at, p, x, r, a, b, y, finite);
    }
}

#define GROUP(P, R)                                                                                \
    do {                                                                                           \
        if (stream) {                                                                              \
            NAME(group)(n, P, x, R, a + j * p, b + j, y + j, 1, finite->check, finite);            \
        } else {                                                                                   \
            NAME(group)(n, P, x, R, a + j * p, b + j, y + j, 0, finite->check, finite);            \
        }                                                                                          \
    } while (0)

static inline __attribute__((always_inline)) void
NAME(groups)(ptrdiff_t n, ptrdiff_t constant_p, ptrdiff_t p, const T *const *x, ptrdiff_t m,
             const C *a, const C *b, T *const *y, int stream, wf_finite *finite)
{
    ptrdiff_t j = 0;
    for (; j + 4 <= m; j += 4) {
        GROUP(constant_p, 4);
    }
    for (; j + 2 <= m; j += 2) {
        GROUP(constant_p, 2);
    }
    for (; j < m; j++) {
        GROUP(constant_p, 1);
    }
}
#undef GROUP

static void NAME(apply)(ptrdiff_t n, ptrdiff_t p, const void *const *xs, ptrdiff_t m,
                        const void *as, const void *bs, void *const *ys, int stream,
                        wf_finite *finite)
{
    const T *const *x = (const T *const *)xs;
    T *const *y = (T *const *)ys;
    const C *a = as, *b = bs;
    switch (p) {
    case 1:
        NAME(groups)(n, 1, p, x, m, a, b, y, stream, finite);
        break;
    case 2:
        NAME(groups)(n, 2, p, x, m, a, b, y, stream, finite);
        break;
    case 3:
        NAME(groups)(n, 3, p, x, m, a, b, y, stream, finite);
        break;
    default:
        NAME(groups)(n, p, p, x, m, a, b, y, stream, finite);
        break;
    }
}

#undef NAME
#undef T
#undef C
#undef V
#undef W
#undef SET1
#undef FMA
#undef BEYOND
#undef ANY
#undef LOAD
#undef STORE
#undef STREAM
#undef LIMIT
