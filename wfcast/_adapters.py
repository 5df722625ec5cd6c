"""LoRA's pairs of factors, and linear combinations of their products.

What an adapter adds to a layer is the product B A of its factors, so it is the products that a
forecast is to combine. A sum of products has a higher rank than one of them: the best one of the
old rank is kept, in factors that lie as near as possible to those of the last state.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ._errors import CheckpointError

__all__ = [
    "FACTORS",
    "Pair",
    "Product",
    "check_shapes",
    "combine_product",
    "pairs_in",
    "product_gram",
    "recombined",
    "without_zeros",
]

Matrix = npt.NDArray[np.float64]
T = TypeVar("T")

FACTORS = "pass adapters='factors' (--adapters factors)"
"""What a message says of the way out."""

ROUNDS = 20
"""The most steps towards the last factors; ten were enough wherever it was tried."""

EPS = float(np.finfo(np.float64).eps)

GAIN = 1e-6
"""The least share of the squared distance that a further step is made for."""

# As PEFT names them: `lora_A.weight` in files and `lora_A.<adapter>.weight` in state dicts; those
# of embeddings are plain parameters.
_FACTOR = re.compile(
    r"((?:.*\.)?lora)_([AB])((?:\.[^.]+)?\.weight)|((?:.*\.)?lora_embedding)_([AB])((?:\.[^.]+)?)"
)
# Of a parameter that stacks all experts of a layer (`target_parameters`): A (experts * rank, in),
# B (out, rank * experts), the columns of B in another order than the rows of A.
_EXPERTS = re.compile(r"(?:.*\.)?experts(?:\.base_layer)*\.lora_[AB](?:\.[^.]+)?\.weight")
_SINGULAR_VALUES = re.compile(r"(?:.*\.)?lora_E(?:\.[^.]+)?")


class Pair(NamedTuple):
    """The names of the factors A (rank, in) and B (out, rank) of one adapter of a layer."""

    a: str
    b: str

    def __str__(self) -> str:
        """Their common name."""
        stem, _, rest = _parts(self.a)
        return stem + rest


class Product(NamedTuple):
    """Factors, and what became of the product.

    Attributes
    ----------
    a, b : (rank, in) and (out, rank) arrays
    cut : float
        The share of the squared norm that the rank cuts off, from 0 to 1.
    moved : float
        How far the product is from that of the last state, as a share of the norm of that.
    """

    a: Any
    b: Any
    cut: float
    moved: float


def pairs_in(names: Iterable[str], *, lone: bool = False) -> dict[str, Pair]:
    """The pairs among the names of tensors, by both of their names.

    A factor may be without the other one where `lone` says so, and is in no pair then.

    Raises
    ------
    CheckpointError
        A factor without the other one, or AdaLoRA's, whose product has a third; one of all experts
        of a layer, which have several products in one pair of factors.
    """
    sides: dict[tuple[str, str], dict[str, str]] = {}
    for name in names:
        if _SINGULAR_VALUES.fullmatch(name):
            raise CheckpointError(
                f"{name!r} is of AdaLoRA, whose product of three factors wfcast does not combine: "
                f"{FACTORS}"
            )
        if _EXPERTS.fullmatch(name):
            raise CheckpointError(
                f"{name!r} is of all experts of a layer, which have several products in one pair "
                f"of factors: {FACTORS}"
            )
        if parts := _parts(name):
            stem, side, rest = parts
            sides.setdefault((stem, rest), {})[side] = name
    found = {}
    for (stem, rest), pair in sides.items():
        if len(pair) == 1 and lone:
            continue
        if len(pair) == 1:
            ((side, name),) = pair.items()
            other = f"{stem}_{'BA'['AB'.index(side)]}{rest}"
            raise CheckpointError(
                f"{name!r} is to be forecast without {other!r}, and a product needs both: {FACTORS}"
            )
        found.update(dict.fromkeys(pair.values(), Pair(pair["A"], pair["B"])))
    return found


def check_shapes(pair: Pair, a: Sequence[int], b: Sequence[int], what: str) -> None:
    """Raise CheckpointError where factors of these shapes, in `what`, have no product B A."""
    if len(a) < 2 or len(b) < 2 or a[0] != b[1] or math.prod(b[2:]) != 1:
        raise CheckpointError(
            f"{pair.a!r} is {list(a)} and {pair.b!r} {list(b)} in {what}, expected (rank, in) and "
            f"(out, rank), which have a product: {FACTORS}"
        )


def _parts(name: str) -> list[str]:
    """What stands before and after "_A" or "_B", and which it is between them; [] for others."""
    match = _FACTOR.fullmatch(name)
    return [group for group in match.groups() if group is not None] if match else []


def combine_product(
    states: Sequence[tuple[Matrix, Matrix]], coefficients: Sequence[float]
) -> Product:
    r"""The factors of a linear combination of products, which is never formed.

    .. math:: B A \approx \sum_k c_k B_k A_k

    Thin QR decompositions of all :math:`B_k` side by side, and of all :math:`A_k'`, leave a small
    matrix between them; its leading singular vectors give the best product of the last state's
    rank.

    Parameters
    ----------
    states : sequence of (A, B)
        Of shape (rank, in) and (out, rank), float64. Earlier states may have other ranks.
    coefficients : sequence of float
        One for each state. With 0 for all but the last, which has 1, the last factors come back.

    Returns
    -------
    Product
        NaN where a state that counts holds NaN or infinity.

    Notes
    -----
    Any invertible G gives the same product by the factors :math:`B G` and :math:`G^{-1} A`; see
    `recombined` for the one that is taken.
    """
    states, coefficients = without_zeros(states, coefficients)
    if coefficients == [1]:
        return Product(*states[-1], 0.0, 0.0)
    right, a = _basis([a.T for a, _ in states])
    left, b = _basis([b for _, b in states])
    small = recombined(a, b, coefficients)
    return Product(right(small.a).T, left(small.b), small.cut, small.moved)


def without_zeros(
    states: Sequence[T], coefficients: Sequence[float]
) -> tuple[list[T], list[float]]:
    """Both without the states whose coefficient is 0; the last one stays, whatever it has."""
    last = len(states) - 1
    kept = [k for k, c in enumerate(coefficients) if c or k == last]
    return [states[k] for k in kept], [float(coefficients[k]) for k in kept]


def product_gram(states: Sequence[tuple[Matrix, Matrix]]) -> Matrix:
    r"""The (n, n) inner products of all :math:`B_k A_k` less the first, of states of one rank.

    With :math:`b_k = B_k - B_0` and :math:`a_k = A_k - A_0` a difference is
    :math:`b_k A_k + B_0 a_k`, and :math:`<X Y, V W> = <X' V, Y W'>` needs only inner products of
    columns. Those are of differences, so that what is small beside the states is not lost.
    """
    (first_a, first_b), others = states[0], states[1:]
    b = _inner([first_b, *(b - first_b for _, b in others)])
    a = _inner([first_a.T, *((a - first_a).T for a, _ in others)])
    bb, b0, aa, a0 = b[1:, 1:], b[1:, :1], a[1:, 1:], a[1:, :1]
    mixed = aa + a0.transpose(1, 0, 3, 2)  # A_i with a_j
    across = (b0 * mixed).sum(axis=(2, 3))
    moves = (bb * (mixed + a0 + a[:1, :1])).sum(axis=(2, 3)) + (b[:1, :1] * aa).sum(axis=(2, 3))
    return np.pad(moves + across + across.T, ((1, 0), (1, 0)))


def _inner(factors: Sequence[Matrix]) -> Matrix:
    """The inner products of all columns: (n, n, rank, rank), factor by factor."""
    columns = np.hstack(factors)
    n, rank = len(factors), factors[0].shape[1]
    return (columns.T @ columns).reshape(n, rank, n, rank).transpose(0, 2, 1, 3)


def _basis(factors: Sequence[Matrix]) -> tuple[Callable[[Matrix], Matrix], list[Matrix]]:
    """Orthonormal columns that span those of all factors, and the factors in their terms.

    The basis stays in LAPACK's reflectors, for to form it takes longer than to find it; it is given
    as the function that multiplies it by what it is handed.
    """
    from scipy.linalg import lapack, qr  # import wfcast does without

    (reflectors, scales), coordinates = qr(
        np.hstack(factors), overwrite_a=True, mode="raw", check_finite=False
    )
    rows, rank = len(reflectors), len(scales)

    def times(small: Matrix) -> Matrix:
        padded = np.zeros((rows, small.shape[1]), order="F")
        padded[:rank] = small
        room = 64 * max(rows, small.shape[1])
        product: Matrix = lapack.dormqr("L", "N", reflectors[:, :rank], scales, padded, room)[0]
        return product

    ends = np.cumsum([factor.shape[1] for factor in factors])[:-1]
    return times, np.split(coordinates[:rank], ends, axis=1)


def recombined(a: Sequence[Matrix], b: Sequence[Matrix], coefficients: Sequence[float]) -> Product:
    r"""What is left to do where factors are given in terms of orthonormal bases of theirs.

    Parameters
    ----------
    a, b : sequences of (q, rank) and (p, rank) arrays
        :math:`A_k'` and :math:`B_k` in terms of the bases, small.
    coefficients : sequence of float

    Returns
    -------
    Product
        `a` is (q, rank), as those that were given.

    Notes
    -----
    The singular values are divided between the factors so that :math:`|B|^2 - |A|^2` stays what it
    is in the last state, in equal parts: gradient descent keeps :math:`B'B - A A'` nearly as it
    is, too. Without a difference that is an even split; after LoRA's start, with a large A and
    B = 0, no direction is left with two small factors, which could hardly learn. A rotation
    (Procrustes) and a few Gauss-Newton steps then lead to the factors of that product which are
    nearest to the last ones, so that an optimizer's moments still fit.
    """
    last_a, last_b = a[-1], b[-1]
    rank = last_b.shape[1]
    weighted = np.hstack([c * factor for c, factor in zip(coefficients, b, strict=True)])
    beside = np.hstack(a)
    if not (np.isfinite(weighted).all() and np.isfinite(beside).all()):
        return Product(last_a * np.nan, last_b * np.nan, np.nan, np.nan)
    whole = weighted @ beside.T
    u, s, vt = _leading(whole, rank)
    best, last = (u * s) @ vt, last_b @ last_a.T
    cut = _ratio(np.square(whole - best).sum(), np.square(whole).sum())
    moved = _ratio(np.linalg.norm(best - last), np.linalg.norm(last))
    # a direction that is rounding alone gets what the last state has in its place (`_nearest`)
    s = np.where(s > EPS * weighted.shape[1] * s[0], s, 0.0)
    difference = (np.square(last_b).sum() - np.square(last_a).sum()) / rank
    larger = np.sqrt((np.hypot(difference, 2 * s) + abs(difference)) / 2) * (s > 0)
    smaller = np.divide(s, larger, out=np.zeros_like(s), where=s > 0)
    of_a, of_b = (smaller, larger) if difference > 0 else (larger, smaller)
    new_a, new_b = _padded(vt.T * of_a, rank), _padded(u * of_b, rank)
    p, _, qt = np.linalg.svd(new_b.T @ last_b + new_a.T @ last_a)
    return Product(*_nearest(new_a @ p @ qt, new_b @ p @ qt, last_a, last_b), cut, moved)


def _leading(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, Matrix]:
    """The leading singular values, and the vectors to both sides, as `numpy.linalg.svd` has them.

    Of many the leading ones are found faster by eigenvectors of the Gram matrix, which tell
    directions apart whose singular values are above a ten-thousandth of the first.
    """
    from scipy.linalg import eigh

    n = len(matrix)
    if 2 * rank < min(matrix.shape):
        gram = matrix @ matrix.T
        values, directions = eigh(gram, subset_by_index=(n - rank, n - 1), overwrite_a=True)
        if values[0] > 1e-8 * values[-1]:
            u, s, vt = np.linalg.svd(directions.T @ matrix, full_matrices=False)
            return directions @ u, s, vt
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def _ratio(value: Any, of: Any) -> float:
    return float(value / of) if of else np.inf if value else 0.0


def _padded(factor: Matrix, rank: int) -> Matrix:
    """With columns of zeros where the layer is smaller than the rank."""
    return np.pad(factor, ((0, 0), (0, rank - factor.shape[1])))


def _nearest(a: Matrix, b: Matrix, last_a: Matrix, last_b: Matrix) -> tuple[Matrix, Matrix]:
    """The factors of the same product that are nearest to the last ones.

    What one factor takes to 0 is free in the other one. For the rest, with G = I + E,
    b G - last_b and a G'^-1 - last_a are linear in a small E: least squares for it is a
    Sylvester equation, (b'b) E + E (a'a) = b'(last_b - b) - (last_a - a)'a.
    """
    eye = np.eye(b.shape[1])
    best = np.inf
    # the factor that was of lower rank keeps taking to 0 what it took to 0
    if np.linalg.matrix_rank(last_a) < np.linalg.matrix_rank(last_b):
        b = b + (last_b - b) @ _directions(a)[2]
    for _ in range(ROUNDS):
        of_b, p, unseen = _directions(b)
        a = a + (last_a - a) @ unseen
        of_a, q, unseen = _directions(a)
        b = b + (last_b - b) @ unseen
        distance = _distance(a, b, last_a, last_b)
        if distance >= (1 - GAIN) * best:
            break
        best = distance
        right = p.T @ (b.T @ (last_b - b) - (last_a - a).T @ a) @ q
        scale = of_b[:, None] + of_a
        e = p @ np.divide(right, scale, out=np.zeros_like(right), where=scale > 0) @ q.T
        # shorter than 1, so that I + E can be inverted
        e *= 0.5 / max(float(np.linalg.norm(e)), 0.5)
        for share in (1.0, 0.5, 0.25, 0.125):
            near_a, near_b = a @ np.linalg.inv(eye + share * e).T, b + share * b @ e
            if _distance(near_a, near_b, last_a, last_b) < distance:
                a, b = near_a, near_b
                break
    return a, b


def _directions(factor: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Squared singular values, right singular vectors, and the projection on those of 0."""
    rank = factor.shape[1]
    _, s, vt = np.linalg.svd(np.linalg.qr(factor, mode="r"))
    s = np.pad(s, (0, rank - len(s)))
    unseen = vt[s <= EPS * max(factor.shape) * s[0]]
    return np.square(s), vt.T, unseen.T @ unseen


def _distance(a: Matrix, b: Matrix, last_a: Matrix, last_b: Matrix) -> float:
    return float(np.square(a - last_a).sum() + np.square(b - last_b).sum())
