"""L2 attention on tiles held by one program: scores, probabilities and what the derivatives are made of.

Rows are queries i, columns are keys j. A score is f(||q_i - k_j||^2): -scale * x for the squared distance,
-scale * sqrt(x) for the distance itself. Scores and their log-sum-exp are in units of log2, so that probabilities are
exp2. With the names of `closed_form.py`, which has the mathematics:

    slope    2 f'           a number for the squared distance, a tile otherwise; 0 where q_i = k_j
    e, f     slope * dS and what the second order has in its place; rounded to the inputs' dtype for the tensor cores

The gradient of a query is sum_j e_ij (q_i - k_j) = rowsum(e) q - e K, with the row sums of the *rounded* e: rounding
then acts on differences of tokens, and a shift of all tokens changes nothing.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels import triton_support

INTERPRETED: tl.constexpr = tl.constexpr(triton_support.INTERPRETED)


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """Matrix product, accumulated in float32."""
    if INTERPRETED:  # where products of bfloat16 are wrong
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


# A tensor (B, H, N, width) is (pointer, stride of B, of H, of N). Tokens of it are (tile, pointers to its rows, which
# rows are there); a tile is 0 in rows and columns that are not.


@triton.jit
def token_rows(x, head, HEADS, start, BLOCK: tl.constexpr):
    """Pointers to BLOCK tokens from `start` of the head-th (batch, head).

    All offsets are 64-bit numbers: where tokens are the outermost dimension in memory, so few as two can be 2^31 apart.
    """
    b, h = (head // HEADS).to(tl.int64), (head % HEADS).to(tl.int64)
    offsets = tl.cast(start, tl.int64) * x[3] + tl.arange(0, BLOCK).to(tl.int64) * x[3]
    return x[0] + b * x[1] + h * x[2] + offsets


@triton.jit
def load_tile(rows, valid, width, BLOCK: tl.constexpr, FULL: tl.constexpr):
    """A tile of BLOCK columns from pointers to its rows. FULL: width is BLOCK."""
    columns = tl.arange(0, BLOCK)
    mask = valid[:, None] if FULL else valid[:, None] & (columns[None, :] < width)
    return tl.load(rows[:, None] + columns[None, :], mask=mask, other=0.0)


@triton.jit
def load_tokens(
    x, head, HEADS, start, LENGTH, width, WIDTH: tl.constexpr, FULL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """BLOCK tokens from `start` of LENGTH."""
    rows = token_rows(x, head, HEADS, start, BLOCK)
    valid = start + tl.arange(0, BLOCK) < LENGTH
    return load_tile(rows, valid, width, WIDTH, FULL), rows, valid


@triton.jit
def store_tokens(x, tile, head, HEADS, start, LENGTH, width, FULL: tl.constexpr):
    """The reverse of `load_tokens`, in the dtype of the memory."""
    rows = token_rows(x, head, HEADS, start, tile.shape[0])
    valid = start + tl.arange(0, tile.shape[0]) < LENGTH
    columns = tl.arange(0, tile.shape[1])
    mask = valid[:, None] if FULL else valid[:, None] & (columns[None, :] < width)
    tl.store(rows[:, None] + columns[None, :], tile.to(rows.dtype.element_ty), mask=mask)


@triton.jit
def own_tile(LENGTH, BLOCK: tl.constexpr):
    """(batch, head) and first token of the tile that this program owns."""
    tiles = tl.cdiv(LENGTH, BLOCK)
    return tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * BLOCK


@triton.jit
def row_numbers(head, N, start, BLOCK: tl.constexpr):
    """Where BLOCK queries from `start` have their row sums."""
    return head.to(tl.int64) * N + start + tl.arange(0, BLOCK)


@triton.jit
def row_products(a, b):
    """a_i . b_i in float32."""
    return tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)


# Products over features, and sums over them, take whole rows into registers. Tokens of more than CHUNK features do not
# fit, many tiles of them at once; these are read again for each use, so that nothing holds them in between.


@triton.jit
def whole(x, width, CHUNK: tl.constexpr, FULL: tl.constexpr):
    """The tile of tokens, whatever its width."""
    return x[0] if x[0].shape[1] <= CHUNK else load_tile(x[1], x[2], width, x[0].shape[1], FULL)


@triton.jit
def inner(x, y, width, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """x_i . y_j of tokens as `load_tokens` has them."""
    if x[0].shape[1] <= CHUNK:
        total = product(x[0], tl.trans(y[0]), PRECISION)
    else:
        total = tl.zeros((x[0].shape[0], y[0].shape[0]), tl.float32)
        for start in range(0, width, CHUNK):
            x_part = load_tile(x[1] + start, x[2], width - start, CHUNK, False)
            y_part = load_tile(y[1] + start, y[2], width - start, CHUNK, False)
            total += product(x_part, tl.trans(y_part), PRECISION)
    return total


@triton.jit
def weighted_sum(weights, x, width, CHUNK: tl.constexpr, FULL: tl.constexpr, PRECISION: tl.constexpr):
    """sum_j weights_ij x_j of tokens, with weights rounded to their dtype."""
    return product(weights.to(x[0].dtype), whole(x, width, CHUNK, FULL), PRECISION)


@triton.jit
def row_inner(x, y, width, CHUNK: tl.constexpr):
    """x_i . y_i of tokens in float32."""
    if x[0].shape[1] <= CHUNK:
        total = row_products(x[0], y[0])
    else:
        total = tl.zeros((x[0].shape[0],), tl.float32)
        for start in range(0, width, CHUNK):
            x_part = load_tile(x[1] + start, x[2], width - start, CHUNK, False)
            total += row_products(x_part, load_tile(y[1] + start, y[2], width - start, CHUNK, False))
    return total


@triton.jit
def squared_distances(q_rows, q_valid, k_rows, k_valid, d):
    """||q_i - k_j||^2 from the differences themselves: exact where tokens nearly coincide, 0 where they do."""
    total = tl.zeros((q_rows.shape[0], k_rows.shape[0]), tl.float32)
    for feature in range(d):
        q = tl.load(q_rows + feature, mask=q_valid, other=0.0).to(tl.float32)
        k = tl.load(k_rows + feature, mask=k_valid, other=0.0).to(tl.float32)
        difference = q[:, None] - k[None, :]
        total += difference * difference
    return total


@triton.jit
def scores(
    q, k, scale, score_scale, d, EUCLIDEAN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """Scores times log2(e), -inf beyond the last key; the slope; 1 / squared distance, 0 at distance 0.

    score_scale is scale * log2(e), a product that the launcher makes, rounded once.
    The squared distance leaves out its term of the query, which is constant along a row, so that a softmax does not
    see it; and it has no use for the last result.
    """
    if EUCLIDEAN:
        squares = squared_distances(q[1], q[2], k[1], k[2], d)
        apart = squares > 0
        inverse = tl.where(apart, 1.0 / tl.where(apart, squares, 1.0), 0.0)
        score = -score_scale * tl.sqrt(squares)
        slope = -scale * tl.sqrt(inverse)
    else:
        inverse = 0.0
        cross = inner(q, k, d, CHUNK, PRECISION)
        score = score_scale * (2.0 * cross - row_inner(k, k, d, CHUNK)[None, :])
        slope = -2.0 * scale
    return tl.where(k[2][None, :], score, float("-inf")), slope, inverse


@triton.jit
def scores_both_ways(
    x, y, scale, score_scale, d, EUCLIDEAN: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """For tokens that are queries and keys: the scores of queries x_i and keys y_j, of keys x_i and queries y_j; slope.

    The second are -inf beyond the last x_i, not beyond the last y_j.
    """
    if EUCLIDEAN:
        taken, slope, _ = scores(x, y, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        given = taken
    else:
        cross = 2.0 * inner(x, y, d, CHUNK, PRECISION)
        slope = -2.0 * scale
        taken = tl.where(y[2][None, :], score_scale * (cross - row_inner(y, y, d, CHUNK)[None, :]), float("-inf"))
        given = score_scale * (cross - row_inner(x, x, d, CHUNK)[:, None])
    return taken, tl.where(x[2][:, None], given, float("-inf")), slope


@triton.jit
def store_lse(LSE, plane, rows, valid, highest, total):
    """Keep log2(sum of exp2(score)) as a float32 and, a plane further on, what its rounding left over.

    A score far from 0 has few digits behind the point, and so would P have: with both, P is as exact as a softmax's.
    """
    log = tl.log2(total)
    lse = highest + log
    tl.store(LSE + rows, lse, mask=valid)
    tl.store(LSE + plane + rows, (highest - lse) + log, mask=valid)


@triton.jit
def load_lse(LSE, plane, rows, valid):
    """The two numbers of the log-sum-exp; inf in rows that are not valid, which makes their probabilities 0."""
    return tl.load(LSE + rows, mask=valid, other=float("inf")), tl.load(LSE + plane + rows, mask=valid, other=0.0)


@triton.jit
def probabilities(score, lse):
    """P from scores and their rows' log-sum-exp."""
    return tl.exp2((score - lse[0][:, None]) - lse[1][:, None])


@triton.jit
def tangents(q, a, qa, k, b, kb, d, CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """y_ij = (q_i - k_j) . (A_i - B_j), half the tangent of the squared distance; qa, kb are q_i . A_i, k_j . B_j."""
    mixed = inner(q, b, d, CHUNK, PRECISION) + inner(a, k, d, CHUNK, PRECISION)
    return qa[:, None] + kb[None, :] - mixed


@triton.jit
def second_order(p, dp, y, x, slope, inverse, delta, g, w, EUCLIDEAN: tl.constexpr):
    """The tiles R, e and f of the second order, float32."""
    tangent = slope * y
    ds = p * (dp - delta[:, None])
    r = p * (tangent - g[:, None])
    h = p * ((dp - delta[:, None]) * (tangent - g[:, None]) + x - w[:, None])
    f = slope * h
    if EUCLIDEAN:
        f -= slope * inverse * y * ds
    return r, slope * ds, f
