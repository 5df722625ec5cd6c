"""NumPy twin of the C core: says what every kernel and fit must give, in the plainest way.

A column is an array of float64, float32, float16, or uint16 holding the bits of bfloat16.
"""

import numpy as np

DTYPES = (np.float64, np.float32, np.float16, np.uint16)


def bfloat16_to_float32(bits):
    """Widen the bits of bfloat16: exact."""
    return (np.asarray(bits, np.uint32) << 16).view(np.float32)


def float32_to_bfloat16(values):
    """Round to the bits of bfloat16, to nearest even; NaN stays NaN."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(values), quiet, rounded)


def widen(column):
    """A column in float64: exact."""
    column = np.asarray(column)
    if column.dtype == np.uint16:
        column = bfloat16_to_float32(column)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return column.astype(np.float64)


def narrow(values, dtype):
    """float64 to a column dtype, rounded once to nearest even."""
    if dtype != np.uint16:
        with np.errstate(over="ignore"):
            return np.asarray(values, np.float64).astype(dtype)
    values = np.asarray(values, np.float64)
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    # Round to odd on the way, so that the second rounding is as good as one.
    inexact = (single.astype(np.float64) != values) & np.isfinite(values)
    beyond = inexact & (np.abs(single.astype(np.float64)) > np.abs(values))
    bits = np.atleast_1d(single).view(np.uint32).copy()
    bits[np.atleast_1d(beyond)] -= 1
    bits[np.atleast_1d(inexact)] |= 1
    return float32_to_bfloat16(bits.view(np.float32)).reshape(values.shape)


def placed(values, step, offset):
    """The same values in memory of their own: `step` items apart, `offset` bytes off alignment."""
    item = values.dtype.itemsize
    room = np.zeros((len(values) * abs(step) + 2) * item + 64, np.uint8)
    view = np.ndarray(
        values.shape,
        values.dtype,
        room[offset:],
        offset=(len(values) - 1) * item * abs(step) if step < 0 and len(values) else 0,
        strides=(step * item,),
    )
    view[...] = values
    return view


def fma32(a, b, c):
    """float32 a * b + c rounded once: exact product in float64, the sum rounded to odd there."""
    a, b, c = (np.asarray(v, np.float64) for v in (a, b, c))
    product = a * b
    total = product + c
    error = (product - (total - c)) + (c - (total - (total - c)))  # two-sum
    bits = np.atleast_1d(total).view(np.int64).copy()
    odd = np.atleast_1d(error) != 0
    away = odd & ((np.atleast_1d(error) > 0) == (np.atleast_1d(total) < 0))
    bits[away] -= 1
    bits[odd] |= 1
    with np.errstate(over="ignore"):
        return bits.view(np.float64).astype(np.float32).reshape(total.shape)


def centred(x, coef, intercept):
    """The inputs and coefficients with the centre at the end, and whether there is one."""
    sizes = np.abs(coef)
    rounding = len(x) * np.finfo(float).eps * sizes.sum(axis=1)
    if np.any(intercept) or not np.all(np.abs(coef.sum(axis=1) - 1) <= rounding):
        return list(x), coef, False
    shares = (sizes / sizes.max(axis=1, keepdims=True)).min(axis=0)
    if not shares.any():
        return list(x), coef, False
    order = np.arange(len(x))
    q = len(x) - 1 - np.argmax(shares[::-1])
    order[[q, -1]] = order[[-1, q]]
    coef = coef[:, order]
    coef[:, -1] = 1
    return [x[k] for k in order], coef, True


def apply(x, coef, intercept, out_dtypes):
    """out_j = intercept_j + sum_k coef_jk x_k, by fused float32 steps but with float64 columns.

    Where all coefficients of each output sum to 1, the others' differences from the input of the
    largest are summed. In float64 the fused sum is not imitated; it differs by rounding.
    """
    wide = any(np.asarray(c).dtype == np.float64 for c in x) or np.float64 in out_dtypes
    x, coef, c = centred(x, np.asarray(coef, float), intercept)
    q = widen(x[-1]) if len(x) else 0
    outputs = []
    for j, dtype in enumerate(out_dtypes):
        if wide:
            total = float(intercept[j]) + coef[j, -1] * q
            for k, column in enumerate(x[:-1]):
                total = total + coef[j, k] * (widen(column) - q if c else widen(column))
        else:
            bias = np.full(np.shape(q), np.float32(intercept[j]))
            total = fma32(q, np.float32(coef[j, -1]), bias)
            for k, column in enumerate(x[:-1]):
                from_q = (widen(column) - q).astype(np.float32) if c else widen(column)
                total = fma32(from_q, np.float32(coef[j, k]), total)
        outputs.append(narrow(total, dtype))
    return outputs


def moves(y, last):
    """Sums of (y - last)^2 and of last^2, of rows where y - last is finite."""
    y, last = widen(y), widen(last)
    with np.errstate(invalid="ignore"):
        move = y - last
    fine = np.isfinite(move)
    return (move[fine] ** 2).sum(), (last[fine] ** 2).sum()


def blend(w, average, c):
    """average + c (w - average), in float32 by fused steps but with float64 columns."""
    if c in (0, 1):
        return average.copy() if c == 0 else narrow(widen(w), average.dtype)
    if np.float64 in (w.dtype, average.dtype):
        return narrow(widen(average) + c * (widen(w) - widen(average)), average.dtype)
    difference = (widen(w) - widen(average)).astype(np.float32)
    total = fma32(difference, np.full(w.shape, np.float32(c)), widen(average))
    return narrow(total, average.dtype)


def objective(X, Y, coef, intercept, groups=None, first_update=None, beta=0.0):
    """F of the absolute error with the hinge; coef (m, p), intercept (m,)."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    fitted = X @ np.asarray(coef).T + intercept
    value = np.abs(fitted - Y).mean()
    if beta:
        moved = np.bincount(
            groups, np.abs(fitted[:, -1] - fitted[:, -2]), minlength=len(first_update)
        )
        value += beta * np.maximum(moved - first_update, 0).mean()
    return value


def least_squares(X, Y, alpha=0.0, fit_intercept=True):
    """Ridge by augmented rows; minimum norm where rank is missing."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    mean_x, mean_y = (X.mean(0), Y.mean(0)) if fit_intercept else (0.0, 0.0)
    rows = np.vstack([X - mean_x, np.sqrt(alpha) * np.eye(X.shape[1])])
    right = np.vstack([Y - mean_y, np.zeros((X.shape[1], Y.shape[1]))])
    coef = np.linalg.lstsq(rows, right, rcond=1e-10)[0].T
    return coef, mean_y - mean_x @ coef.T if fit_intercept else np.zeros(Y.shape[1])


def error_sums(pred, true):
    """What _core.error_sums returns."""
    difference = widen(pred) - widen(true)
    good = np.isfinite(difference)
    d, t = difference[good], widen(true)[good]
    return {
        "n": int(good.sum()),
        "sum_abs": np.abs(d).sum(),
        "sum_sq": (d * d).sum(),
        "max_abs": np.abs(d).max(initial=0.0),
        "sum_true": t.sum(),
        "sum_true_sq": (t * t).sum(),
        "n_nonfinite": int((~good).sum()),
    }


def gram(x, y=None):
    """What _core.gram returns."""
    left = np.array([widen(c) for c in x])
    return left @ (left if y is None else np.array([widen(c) for c in y])).T


def halves(x, middle):
    """What _core.halves returns."""
    w = np.array([widen(c).ravel() for c in x])
    e = np.vstack([w[-1] - w[0], np.diff(w, axis=0)])
    a, b = w[middle] - w[0], w[-1] - w[middle]
    columns = ((w * w).sum(1), (e * e).sum(1), e @ a, e @ b, (e != 0).sum(1))
    return np.stack(columns, axis=1)


def movement(states):
    """What wfcast.torch's Movement says of a run: `states` are those at the beginning, the middle
    and the end of its history, each a list of tensors.
    """
    first, middle, last = ([np.ravel(w).astype(np.float64) for w in state] for state in states)
    a = [m - f for f, m in zip(first, middle, strict=True)]
    b = [e - m for m, e in zip(middle, last, strict=True)]

    def cosine(places):
        x, y = (np.concatenate([part[i] for i in places]) for part in (a, b))
        norm = np.linalg.norm(x) * np.linalg.norm(y)
        return x @ y / norm if norm else 0.0

    n = len(a)
    left_out = [cosine([i for i in range(n) if i != out]) for out in range(n)] if n > 1 else [0.0]
    moved = np.concatenate(last) - np.concatenate(first)
    return {
        "cosine": cosine(range(n)),
        "by_tensor": [cosine([i]) for i in range(n)],
        "error": np.sqrt((n - 1) / n * np.sum((left_out - np.mean(left_out)) ** 2)),
        "share": np.linalg.norm(moved) / np.linalg.norm(np.concatenate(last)),
    }


def carried_on(momentum, n):
    """The cosine between sums of n updates and of the next n, where k apart correlate by b^k."""
    apart = np.abs(np.subtract.outer(np.arange(2 * n), np.arange(2 * n)))
    alike = np.where(apart == 0, 1.0, float(momentum) ** apart)
    return alike[:n, n:].sum() / alike[:n, :n].sum()


def farcast(seen, spacing, rates, left, share, momentum, past, bounds):
    """Horizon and weights of a jump of wfcast.torch's Farcasting by the line of its history.

    `seen` holds the tensors, by name, at every step since the history began, `rates` is (highest
    so far, now) for each group, `left` the share of the run that is left, `share` that of the
    reach. `past` has (length, drift, way) of the histories that led to jumps, the way with the
    jump's, and gets this one. `bounds` are those of `_rule`, by their names.
    """
    first, last = min(seen), max(seen)
    length = last - first
    middle = first + length // 2
    found = movement([list(seen[t].values()) for t in (first, middle, last)])
    carried = carried_on(momentum, length // 2)
    drift = (found["cosine"] - found["error"] - carried) / (1 - carried)
    recent = [(length, drift)]
    for n, d, _ in past[::-1]:
        if sum(n for n, _ in recent) < bounds["MEMORIES"] / (1 - momentum):
            recent.append((n, d))
        else:
            break
    mean = np.average([d for _, d in recent], weights=[n for n, _ in recent])
    near = sum(way for _, _, way in past) + found["share"] <= bounds["NEAR"]
    if mean < bounds["LEAST_NEAR" if near else "LEAST_FAR"]:
        return 0.0, seen[last]
    horizon = min(bounds["REACH"] * mean, bounds["FARTHEST"]) * length * left * share
    horizon *= np.mean([now / highest for highest, now in rates])
    horizon = min(horizon, bounds["LARGEST"] * length / found["share"])
    if horizon < 1:
        return 0.0, seen[last]
    past.append((length, drift, found["share"] * (1 + horizon / length)))
    at = [t for t in sorted(seen) if (t - first) % spacing == 0 or t == last]
    weights = {}
    for name, like in seen[last].items():
        rows = np.array([np.ravel(seen[t][name]) for t in at], np.float64)
        slope, level = np.polyfit(at, rows, 1)
        weights[name] = (level + slope * (last + horizon)).reshape(like.shape)
    return horizon, weights
