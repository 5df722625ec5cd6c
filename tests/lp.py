"""The whole objective as one linear program, solved by HiGHS: small problems only.

Variables: coefficients of the m targets, then |residual| (N m), |difference| (N), excess (S).
"""

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import block_diag, coo_array, eye_array, hstack, vstack


def optimum(X, Y, groups=None, first_update=None, beta=0.0, fit_intercept=True):
    """The least F that any coefficients reach."""
    X, Y = np.asarray(X, float), np.asarray(Y, float)
    n, m = Y.shape
    rows = np.column_stack([X, np.ones(n)]) if fit_intercept else X
    q = rows.shape[1]
    s = len(first_update) if beta else 0
    d = n if beta else 0
    fit = block_diag([coo_array(rows)] * m, format="coo")
    size = n * m

    def padded(left, residual, difference, excess):
        return hstack([left, residual, difference, excess])

    def zeros(height, width):
        return coo_array((height, width))

    A, b = [], []
    y = Y.T.ravel()
    for sign in (1, -1):
        A.append(padded(sign * fit, -eye_array(size), zeros(size, d), zeros(size, s)))
        b.append(sign * y)
    if beta:
        move = hstack([zeros(n, q * (m - 2)), coo_array(-rows), coo_array(rows)])
        for sign in (1, -1):
            A.append(padded(sign * move, zeros(n, size), -eye_array(n), zeros(n, s)))
            b.append(np.zeros(n))
        member = coo_array((np.ones(n), (np.asarray(groups), np.arange(n))), shape=(s, n))
        A.append(padded(zeros(s, q * m), zeros(s, size), member, -eye_array(s)))
        b.append(np.asarray(first_update, float))
    cost = np.concatenate(
        [np.zeros(q * m), np.full(size, 1 / size), np.zeros(d), np.full(s, beta / s if s else 0)]
    )
    bounds = [(None, None)] * (q * m) + [(0, None)] * (size + d + s)
    result = linprog(
        cost, A_ub=vstack(A, format="csr"), b_ub=np.concatenate(b), bounds=bounds, method="highs"
    )
    assert result.status == 0, result.message
    return result.fun
