/* Stamps one apply kernel, and one for one output with its moves. The includer defines NAME(x) to
 * suffix names, T the element type, C the compute type, V its vector and W the elements in it, TILE
 * the running sums to have at a time, SET1, FMA, LOAD (T to V), ROUND (V to R, a vector of T), BACK (R to V), STORE, STREAM and RELOAD
 * (of an R), LANES (V to an array of C), and BAD, NOTE and ANY, which gather whether an R held NaN
 * or infinity.
 *
 * One look at the outputs sees the inputs too: whatever the coefficients, one NaN or infinity among
 * the terms of a sum makes the sum NaN or infinite. */

/* v, or v - q where the sum is centred on q. */
static inline __attribute__((always_inline)) V NAME(from)(V q, int centred, V v)
{
    return centred ? FMA(q, SET1(-1), v) : v;
}

/* `count` < W elements at `at`, through buffers: the unaligned head and the tail, with the
 * arithmetic of the rest. */
static inline void NAME(edge)(ptrdiff_t count, ptrdiff_t at, ptrdiff_t p, const T *const *x, int r,
                              const C *a, const C *b, int centred, T *const *y, wf_finite *finite)
{
    T buffer[W] = {0};
    V acc[WF_APPLY_OUTPUTS], q = SET1(0);
    if (p > 0) {
        memcpy(buffer, x[p - 1] + at, (size_t)count * sizeof(T));
        q = LOAD(buffer);
    }
    for (int j = 0; j < r; j++) {
        acc[j] = p > 0 ? FMA(q, SET1(a[j * p + p - 1]), SET1(b[j])) : SET1(b[j]);
    }
    for (ptrdiff_t k = 0; k < p - 1; k++) {
        memcpy(buffer, x[k] + at, (size_t)count * sizeof(T));
        const V v = NAME(from)(q, centred, LOAD(buffer));
        for (int j = 0; j < r; j++) {
            acc[j] = FMA(v, SET1(a[j * p + k]), acc[j]);
        }
    }
    BAD bad = {0};
    for (int j = 0; j < r; j++) {
        T out[W], used[W] = {0}; /* unused ones hold b_j, which is nobody's result */
        STORE(out, ROUND(acc[j]));
        memcpy(used, out, (size_t)count * sizeof(T));
        memcpy(y[j] + at, used, (size_t)count * sizeof(T));
        bad = NOTE(bad, RELOAD(used));
    }
    finite->bad |= ANY(bad);
}

/* r outputs over u vectors at `at`. r, u and, if `few` is true, p <= WF_APPLY_INPUTS are constants
 * once inlined; `weight` and `bias` lie in registers then. */
static inline __attribute__((always_inline)) BAD
NAME(tile)(ptrdiff_t at, int u, int few, ptrdiff_t p, const T *const *x, int r, const C *a,
           const V *weight, const V *bias, int centred, T *const *y, int stream, int check, BAD bad)
{
    V acc[TILE], q[TILE];
    UNROLL
    for (int i = 0; i < u; i++) {
        q[i] = p > 0 ? LOAD(x[p - 1] + at + i * W) : SET1(0);
        UNROLL
        for (int j = 0; j < r; j++) {
            const ptrdiff_t of = j * p + p - 1;
            acc[j * u + i] = p > 0 ? FMA(q[i], few ? weight[of] : SET1(a[of]), bias[j]) : bias[j];
        }
    }
    for (ptrdiff_t k = 0; k < p - 1; k++) {
        V v[TILE];
        UNROLL
        for (int i = 0; i < u; i++) {
            v[i] = NAME(from)(q[i], centred, LOAD(x[k] + at + i * W));
        }
        UNROLL
        for (int j = 0; j < r; j++) {
            const V w = few ? weight[j * p + k] : SET1(a[j * p + k]);
            UNROLL
            for (int i = 0; i < u; i++) {
                acc[j * u + i] = FMA(v[i], w, acc[j * u + i]);
            }
        }
    }
    UNROLL
    for (int j = 0; j < r; j++) {
        UNROLL
        for (int i = 0; i < u; i++) {
            const R rounded = ROUND(acc[j * u + i]);
            if (check) {
                bad = NOTE(bad, rounded);
            }
            if (stream) {
                STREAM(y[j] + at + i * W, rounded);
            } else {
                STORE(y[j] + at + i * W, rounded);
            }
        }
    }
    return bad;
}

/* r outputs over n elements, u vectors at a time. */
static inline __attribute__((always_inline)) void
NAME(group)(ptrdiff_t n, int u, int few, ptrdiff_t p, const T *const *xs, int r, const C *a,
            const C *b, int centred, T *const *ys, int stream, int check, wf_finite *finite)
{
    ptrdiff_t at = 0;
    if (stream) {
        const size_t rest = (uintptr_t)ys[0] % (W * sizeof(T));
        for (int j = 1; j < r; j++) {
            stream = stream && (uintptr_t)ys[j] % (W * sizeof(T)) == rest;
        }
        if (stream && rest) {
            at = (ptrdiff_t)(W - rest / sizeof(T));
            at = at < n ? at : n;
            NAME(edge)(at, 0, p, xs, r, a, b, centred, ys, finite);
        }
    }
    V bias[WF_APPLY_OUTPUTS], weight[WF_APPLY_INPUTS * WF_APPLY_OUTPUTS];
    const T *columns[WF_APPLY_INPUTS] = {0};
    T *y[WF_APPLY_OUTPUTS];
    for (int j = 0; j < r; j++) {
        y[j] = ys[j];
        bias[j] = SET1(b[j]);
        for (ptrdiff_t k = 0; few && k < p; k++) {
            weight[j * p + k] = SET1(a[j * p + k]);
            columns[k] = xs[k];
        }
    }
    const T *const *x = few ? columns : xs;
    BAD bad = {0};
    for (; at + u * W <= n; at += u * W) {
        bad = NAME(tile)(at, u, few, p, x, r, a, weight, bias, centred, y, stream, check, bad);
    }
    for (; u > 1 && at + W <= n; at += W) {
        bad = NAME(tile)(at, 1, few, p, x, r, a, weight, bias, centred, y, stream, check, bad);
    }
    finite->bad |= ANY(bad);
    if (at < n) {
        NAME(edge)(n - at, at, p, x, r, a, b, centred, y, finite);
    }
}

/* Many inputs come in longer pieces of each of them, so that each coefficient serves several
 * vectors. */
#define GROUP(P, R_)                                                                               \
    do {                                                                                           \
        const int u = few ? 1 : (R_) == 1 ? TILE / 2 : TILE / (R_);                                \
        const C *const as = a + j * p, *const bs = b + j;                                          \
        const int check = finite->check;                                                           \
        if (stream) {                                                                              \
            NAME(group)(n, u, few, P, x, R_, as, bs, centred, y + j, 1, check, finite);            \
        } else {                                                                                   \
            NAME(group)(n, u, few, P, x, R_, as, bs, centred, y + j, 0, check, finite);            \
        }                                                                                          \
    } while (0)

static inline __attribute__((always_inline)) void
NAME(groups)(ptrdiff_t n, int few, ptrdiff_t constant_p, ptrdiff_t p, const T *const *x,
             ptrdiff_t m, const C *a, const C *b, int centred, T *const *y, int stream,
             wf_finite *finite)
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
                        const void *as, const void *bs, int centred, void *const *ys, int stream,
                        wf_finite *finite)
{
    const T *const *x = (const T *const *)xs;
    T *const *y = (T *const *)ys;
    const C *a = as, *b = bs;
    switch (p) {
    case 1:
        NAME(groups)(n, 1, 1, p, x, m, a, b, centred, y, stream, finite);
        break;
    case 2:
        NAME(groups)(n, 1, 2, p, x, m, a, b, centred, y, stream, finite);
        break;
    case 3:
        NAME(groups)(n, 1, 3, p, x, m, a, b, centred, y, stream, finite);
        break;
    default:
        NAME(groups)(n, 0, p, p, x, m, a, b, centred, y, stream, finite);
        break;
    }
}

/* -- moves -- */

#define STEPS (WF_MOVE_LANES / W) /* vectors that hold one of each lane */

typedef struct {
    V moved[STEPS], size[STEPS];
} NAME(lanes);

static inline __attribute__((always_inline)) void NAME(add_move)(NAME(lanes) * lanes, int i, V y,
                                                                 V x)
{
    const V move = FMA(x, SET1(-1), y);
    lanes->moved[i] = FMA(move, move, lanes->moved[i]);
    lanes->size[i] = FMA(x, x, lanes->size[i]);
}

static inline __attribute__((always_inline)) void NAME(flush)(NAME(lanes) * lanes, double *moved,
                                                              double *size)
{
    C lane[2][WF_MOVE_LANES];
    UNROLL
    for (int i = 0; i < STEPS; i++) {
        LANES(lane[0] + i * W, lanes->moved[i]);
        LANES(lane[1] + i * W, lanes->size[i]);
        lanes->moved[i] = lanes->size[i] = SET1(0);
    }
    for (int l = 0; l < WF_MOVE_LANES; l++) {
        moved[l] += (double)lane[0][l];
        size[l] += (double)lane[1][l];
    }
}

/* The last rows, fewer than there are lanes. What is not there has no move and no size. */
static void NAME(moves_edge)(ptrdiff_t n, ptrdiff_t at, ptrdiff_t p, const T *const *x, const C *a,
                             const C *b, int centred, ptrdiff_t last, T *y, wf_finite *finite,
                             double *moved, double *size)
{
    NAME(lanes) lanes;
    T from[WF_MOVE_LANES] = {0}, to[WF_MOVE_LANES] = {0};
    memcpy(from, x[last] + at, (size_t)(n - at) * sizeof(T));
    for (ptrdiff_t i = at; i < n; i += W) {
        NAME(edge)(n - i < W ? n - i : W, i, p, x, 1, a, b, centred, &y, finite);
    }
    memcpy(to, y + at, (size_t)(n - at) * sizeof(T));
    for (int i = 0; i < STEPS; i++) {
        lanes.moved[i] = lanes.size[i] = SET1(0);
        NAME(add_move)(&lanes, i, LOAD(to + i * W), LOAD(from + i * W));
    }
    NAME(flush)(&lanes, moved, size);
}

static inline __attribute__((always_inline)) void
NAME(moving)(ptrdiff_t n, int few, ptrdiff_t p, const T *const *xs, const C *a, const C *b,
             int centred, ptrdiff_t last, T *y, int stream, int check, wf_finite *finite,
             double *moved, double *size)
{
    const V bias = SET1(*b);
    V weight[WF_APPLY_INPUTS];
    const T *columns[WF_APPLY_INPUTS];
    for (ptrdiff_t k = 0; few && k < p; k++) {
        weight[k] = SET1(a[k]);
        columns[k] = xs[k];
    }
    const T *const *x = few ? columns : xs;
    BAD bad = {0};
    ptrdiff_t at = 0;
    NAME(lanes) lanes;
    UNROLL
    for (int i = 0; i < STEPS; i++) {
        lanes.moved[i] = lanes.size[i] = SET1(0);
    }
    while (at + WF_MOVE_LANES <= n) {
        const ptrdiff_t whole = n - n % WF_MOVE_LANES;
        const ptrdiff_t stop = whole - at < WF_MOVE_RUN ? whole : at + WF_MOVE_RUN;
        for (; at < stop; at += WF_MOVE_LANES) {
            UNROLL
            for (int i = 0; i < STEPS; i++) {
                const V q = LOAD(x[p - 1] + at + i * W);
                V acc = FMA(q, few ? weight[p - 1] : SET1(a[p - 1]), bias);
                for (ptrdiff_t k = 0; k < p - 1; k++) {
                    const V v = NAME(from)(q, centred, LOAD(x[k] + at + i * W));
                    acc = FMA(v, few ? weight[k] : SET1(a[k]), acc);
                }
                const R rounded = ROUND(acc);
                if (check) {
                    bad = NOTE(bad, rounded);
                }
                NAME(add_move)(&lanes, i, BACK(rounded), LOAD(x[last] + at + i * W));
                if (stream) {
                    STREAM(y + at + i * W, rounded);
                } else {
                    STORE(y + at + i * W, rounded);
                }
            }
        }
        NAME(flush)(&lanes, moved, size);
    }
    finite->bad |= ANY(bad);
    if (at < n) {
        NAME(moves_edge)(n, at, p, xs, a, b, centred, last, y, finite, moved, size);
    }
}

static void NAME(moves)(ptrdiff_t n, ptrdiff_t p, const void *const *xs, const void *as,
                        const void *bs, int centred, ptrdiff_t last, void *y, int stream,
                        wf_finite *finite, double *sums)
{
    const T *const *x = (const T *const *)xs;
    const C *a = as, *b = bs;
    double moved[WF_MOVE_LANES] = {0}, size[WF_MOVE_LANES] = {0};
    const int check = finite->check;
    if (p == 2 && stream) {
        NAME(moving)(n, 1, 2, x, a, b, centred, last, y, 1, check, finite, moved, size);
    } else if (p == 2) {
        NAME(moving)(n, 1, 2, x, a, b, centred, last, y, 0, check, finite, moved, size);
    } else if (stream) {
        NAME(moving)(n, 0, p, x, a, b, centred, last, y, 1, check, finite, moved, size);
    } else {
        NAME(moving)(n, 0, p, x, a, b, centred, last, y, 0, check, finite, moved, size);
    }
    sums[0] = join_moves(moved);
    sums[1] = join_moves(size);
}

#undef STEPS
#undef NAME
#undef T
#undef C
#undef V
#undef W
#undef TILE
#undef R
#undef BAD
#undef SET1
#undef FMA
#undef LOAD
#undef ROUND
#undef BACK
#undef LANES
#undef NOTE
#undef ANY
#undef STORE
#undef STREAM
#undef RELOAD
