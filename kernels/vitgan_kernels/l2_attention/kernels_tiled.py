"""L2 attention of any length: a program owns a tile of tokens and walks over the others. No atomics, no N x N matrix.

Floor, for H (batch, head) pairs of N queries and M keys, s bytes an element (the row sums L, D, g, w are 4 N each):
                     bytes, everything read and written once          operations of the passes
    forward          s (N d + M d + M e + N e)                        2 N M (d + e)
    backward         s (2 N d + 2 M d + 2 M e + 2 N e)                2 N M (4 d + 3 e)
    with K = Q       s (2 N d + 4 N e)                                2 N N (2 d + 3 e)
    second order     s (3 N d + 3 M d + 3 M e + 3 N e)                2 N M (13 d + 9 e)
where K, its gradients and cotangents drop out of the bytes of the other lines with K = Q.

Rows passes own queries and write what belongs to them, with the row sums; keys passes own keys and read those sums.
With K = Q a token is both, and the backward is one pass: what it gives and what it takes share q_i . q_j, and the two
gradients one product. The second order (`kernels_tiled_second.py`) would have to hold 13 tiles at once to do so.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.kernels import (
    inner,
    load_lse,
    load_tokens,
    own_tile,
    probabilities,
    row_inner,
    row_numbers,
    scores,
    scores_both_ways,
    store_lse,
    store_tokens,
    weighted_sum,
    whole,
)


@triton.jit
def forward(
    Q, K, V, OUT, LSE,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """O and the log-sum-exp of a tile of queries, by an online softmax over the keys."""
    head, start = own_tile(N, ROWS)
    q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, E), tl.float32)
    for first in range(0, M, KEYS):
        k = load_tokens((K, k_b, k_h, k_n), head, HEADS, first, M, d, D, FULL_D, KEYS)  # (KEYS, D)
        v = load_tokens((V, v_b, v_h, v_n), head, HEADS, first, M, e, E, FULL_E, KEYS)  # (KEYS, E)
        score, _, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)  # (ROWS, KEYS)
        higher = tl.maximum(highest, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + weighted_sum(p, v, e, CHUNK, FULL_E, PRECISION)
        highest = higher
    store_tokens((OUT, o_b, o_h, o_n), out / total[:, None], head, HEADS, start, N, e, FULL_E)
    store_lse(LSE, PLANE, row_numbers(head, N, start, ROWS), q[2], highest, total)


@triton.jit
def backward_rows(
    G, Q, K, V, OUT, LSE, DELTA, DQ,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dQ and D of a tile of queries; G is dO."""
    head, start = own_tile(N, ROWS)
    q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
    grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)  # (ROWS, E)
    out = load_tokens((OUT, o_b, o_h, o_n), head, HEADS, start, N, e, E, FULL_E, ROWS)
    delta = row_inner(grad, out, e, CHUNK)  # (ROWS,)
    sums = row_numbers(head, N, start, ROWS)
    lse = load_lse(LSE, PLANE, sums, q[2])
    tl.store(DELTA + sums, delta, mask=q[2])
    weight = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, M, KEYS):
        k = load_tokens((K, k_b, k_h, k_n), head, HEADS, first, M, d, D, FULL_D, KEYS)  # (KEYS, D)
        v = load_tokens((V, v_b, v_h, v_n), head, HEADS, first, M, e, E, FULL_E, KEYS)  # (KEYS, E)
        score, slope, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)  # (ROWS, KEYS)
        ds = probabilities(score, lse) * (inner(grad, v, e, CHUNK, PRECISION) - delta[:, None])
        pull = (slope * ds).to(k[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 1)
        pulled += weighted_sum(pull, k, d, CHUNK, FULL_D, PRECISION)
    dq = weight[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tokens((DQ, dq_b, dq_h, dq_n), dq, head, HEADS, start, N, d, FULL_D)


@triton.jit
def backward_keys(
    G, Q, K, V, LSE, DELTA, DK, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys."""
    head, start = own_tile(M, KEYS)
    k = load_tokens((K, k_b, k_h, k_n), head, HEADS, start, M, d, D, FULL_D, KEYS)  # (KEYS, D)
    v = load_tokens((V, v_b, v_h, v_n), head, HEADS, start, M, e, E, FULL_E, KEYS)  # (KEYS, E)
    weight = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    for first in range(0, N, ROWS):
        q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, first, N, d, D, FULL_D, ROWS)  # (ROWS, D)
        grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, first, N, e, E, FULL_E, ROWS)  # (ROWS, E)
        sums = row_numbers(head, N, first, ROWS)
        delta = tl.load(DELTA + sums, mask=q[2], other=0.0)  # (ROWS,)
        score, slope, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)  # (ROWS, KEYS)
        p = probabilities(score, load_lse(LSE, PLANE, sums, q[2]))
        dv += weighted_sum(tl.trans(p), grad, e, CHUNK, FULL_E, PRECISION)
        ds = p * (inner(grad, v, e, CHUNK, PRECISION) - delta[:, None])
        pull = (slope * ds).to(k[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 0)
        pulled += weighted_sum(tl.trans(pull), q, d, CHUNK, FULL_D, PRECISION)
    dk = weight[:, None] * whole(k, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tokens((DK, dk_b, dk_h, dk_n), dk, head, HEADS, start, M, d, FULL_D)
    store_tokens((DV, dv_b, dv_h, dv_n), dv, head, HEADS, start, M, e, FULL_E)


@triton.jit
def backward_tied(
    G, Q, V, OUT, LSE, DQ, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, v_b, v_h, v_n, o_b, o_h, o_n, dq_b, dq_h, dq_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The whole gradients dQ + dK and dV of a tile of tokens i where K = Q: as queries of all j, and as their keys."""
    head, start = own_tile(N, ROWS)
    q = load_tokens((Q, q_b, q_h, q_n), head, HEADS, start, N, d, D, FULL_D, ROWS)  # (ROWS, D)
    v = load_tokens((V, v_b, v_h, v_n), head, HEADS, start, N, e, E, FULL_E, ROWS)  # (ROWS, E)
    grad = load_tokens((G, g_b, g_h, g_n), head, HEADS, start, N, e, E, FULL_E, ROWS)
    out = load_tokens((OUT, o_b, o_h, o_n), head, HEADS, start, N, e, E, FULL_E, ROWS)
    delta = row_inner(grad, out, e, CHUNK)  # (ROWS,)
    lse = load_lse(LSE, PLANE, row_numbers(head, N, start, ROWS), q[2])
    weight = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    dv = tl.zeros((ROWS, E), tl.float32)
    for first in range(0, N, KEYS):
        q_j = load_tokens((Q, q_b, q_h, q_n), head, HEADS, first, N, d, D, FULL_D, KEYS)  # (KEYS, D)
        v_j = load_tokens((V, v_b, v_h, v_n), head, HEADS, first, N, e, E, FULL_E, KEYS)  # (KEYS, E)
        grad_j = load_tokens((G, g_b, g_h, g_n), head, HEADS, first, N, e, E, FULL_E, KEYS)
        out_j = load_tokens((OUT, o_b, o_h, o_n), head, HEADS, first, N, e, E, FULL_E, KEYS)
        delta_j = row_inner(grad_j, out_j, e, CHUNK)  # (KEYS,)
        lse_j = load_lse(LSE, PLANE, row_numbers(head, N, first, KEYS), q_j[2])
        taken, given, slope = scores_both_ways(q, q_j, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(taken, lse)  # (ROWS, KEYS), like all below
        p_j = tl.exp2((given - lse_j[0][None, :]) - lse_j[1][None, :])
        dv += weighted_sum(p_j, grad_j, e, CHUNK, FULL_E, PRECISION)
        ds = p * (inner(grad, v_j, e, CHUNK, PRECISION) - delta[:, None])
        ds += p_j * (inner(v, grad_j, e, CHUNK, PRECISION) - delta_j[None, :])
        pull = (slope * ds).to(q[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 1)
        pulled += weighted_sum(pull, q_j, d, CHUNK, FULL_D, PRECISION)
    dq = weight[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tokens((DQ, dq_b, dq_h, dq_n), dq, head, HEADS, start, N, d, FULL_D)
    store_tokens((DV, dv_b, dv_h, dv_n), dv, head, HEADS, start, N, e, FULL_E)
