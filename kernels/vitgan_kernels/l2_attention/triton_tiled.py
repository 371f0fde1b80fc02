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
gradients one product. The second order (`triton_tiled_second.py`) would have to hold 13 tiles at once to do so.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.triton_tiles import (
    inner,
    load_lse,
    load_tokens,
    probabilities,
    row_inner,
    scores,
    scores_both_ways,
    store_lse,
    store_tile,
    token_rows,
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
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    q = load_tokens(Q, head, HEADS, start, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, E), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k = load_tokens(K, head, HEADS, first, keys, present, k_b, k_h, k_n, d, D, FULL_D)
        v = load_tokens(V, head, HEADS, first, keys, present, v_b, v_h, v_n, e, E, FULL_E)
        score, _, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        higher = tl.maximum(highest, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + weighted_sum(p, v, e, CHUNK, FULL_E, PRECISION)
        highest = higher
    o_rows = token_rows(OUT, head, HEADS, start, rows, o_b, o_h, o_n)
    store_tile(o_rows, out / total[:, None], valid, e, E, FULL_E)
    store_lse(LSE, PLANE, head.to(tl.int64) * N + start + rows, valid, highest, total)


@triton.jit
def backward_rows(
    G, Q, K, V, OUT, LSE, DELTA, DQ,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dQ and D of a tile of queries; G is dO."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    q = load_tokens(Q, head, HEADS, start, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
    grad = load_tokens(G, head, HEADS, start, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
    out = load_tokens(OUT, head, HEADS, start, rows, valid, o_b, o_h, o_n, e, E, FULL_E)
    delta = row_inner(grad, out, e, CHUNK)
    sums = head.to(tl.int64) * N + start + rows
    lse = load_lse(LSE, PLANE, sums, valid)
    tl.store(DELTA + sums, delta, mask=valid)
    weight = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k = load_tokens(K, head, HEADS, first, keys, present, k_b, k_h, k_n, d, D, FULL_D)
        v = load_tokens(V, head, HEADS, first, keys, present, v_b, v_h, v_n, e, E, FULL_E)
        score, slope, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(score, lse)
        ds = p * (inner(grad, v, e, CHUNK, PRECISION) - delta[:, None])
        pull = (slope * ds).to(k[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 1)
        pulled += weighted_sum(pull, k, d, CHUNK, FULL_D, PRECISION)
    dq = weight[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tile(token_rows(DQ, head, HEADS, start, rows, dq_b, dq_h, dq_n), dq, valid, d, D, FULL_D)


@triton.jit
def backward_keys(
    G, Q, K, V, LSE, DELTA, DK, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys."""
    tiles = tl.cdiv(M, KEYS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * KEYS
    keys = tl.arange(0, KEYS)
    present = start + keys < M
    k = load_tokens(K, head, HEADS, start, keys, present, k_b, k_h, k_n, d, D, FULL_D)
    v = load_tokens(V, head, HEADS, start, keys, present, v_b, v_h, v_n, e, E, FULL_E)
    weight = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    rows = tl.arange(0, ROWS)
    for first in range(0, N, ROWS):
        valid = first + rows < N
        q = load_tokens(Q, head, HEADS, first, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
        grad = load_tokens(G, head, HEADS, first, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
        sums = head.to(tl.int64) * N + first + rows
        lse = load_lse(LSE, PLANE, sums, valid)
        delta = tl.load(DELTA + sums, mask=valid, other=0.0)
        score, slope, _ = scores(q, k, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(score, lse)
        dv += weighted_sum(tl.trans(p), grad, e, CHUNK, FULL_E, PRECISION)
        ds = p * (inner(grad, v, e, CHUNK, PRECISION) - delta[:, None])
        pull = (slope * ds).to(k[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 0)
        pulled += weighted_sum(tl.trans(pull), q, d, CHUNK, FULL_D, PRECISION)
    dk = weight[:, None] * whole(k, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tile(token_rows(DK, head, HEADS, start, keys, dk_b, dk_h, dk_n), dk, present, d, D, FULL_D)
    store_tile(token_rows(DV, head, HEADS, start, keys, dv_b, dv_h, dv_n), dv, present, e, E, FULL_E)


@triton.jit
def backward_tied(
    G, Q, V, OUT, LSE, DQ, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, v_b, v_h, v_n, o_b, o_h, o_n, dq_b, dq_h, dq_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr, TIED: tl.constexpr,
    EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """The whole gradients dQ + dK and dV of a tile of tokens i where K = Q: as queries of all j, and as their keys."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    q = load_tokens(Q, head, HEADS, start, rows, valid, q_b, q_h, q_n, d, D, FULL_D)
    v = load_tokens(V, head, HEADS, start, rows, valid, v_b, v_h, v_n, e, E, FULL_E)
    grad = load_tokens(G, head, HEADS, start, rows, valid, g_b, g_h, g_n, e, E, FULL_E)
    out = load_tokens(OUT, head, HEADS, start, rows, valid, o_b, o_h, o_n, e, E, FULL_E)
    delta = row_inner(grad, out, e, CHUNK)
    sums = head.to(tl.int64) * N + start + rows
    lse = load_lse(LSE, PLANE, sums, valid)
    weight = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    dv = tl.zeros((ROWS, E), tl.float32)
    others = tl.arange(0, KEYS)
    for first in range(0, N, KEYS):
        present = first + others < N
        q_j = load_tokens(Q, head, HEADS, first, others, present, q_b, q_h, q_n, d, D, FULL_D)
        v_j = load_tokens(V, head, HEADS, first, others, present, v_b, v_h, v_n, e, E, FULL_E)
        grad_j = load_tokens(G, head, HEADS, first, others, present, g_b, g_h, g_n, e, E, FULL_E)
        out_j = load_tokens(OUT, head, HEADS, first, others, present, o_b, o_h, o_n, e, E, FULL_E)
        delta_j = row_inner(grad_j, out_j, e, CHUNK)
        lse_j = load_lse(LSE, PLANE, head.to(tl.int64) * N + first + others, present)
        taken, given, slope = scores_both_ways(q, q_j, scale, score_scale, d, EUCLIDEAN, CHUNK, PRECISION)
        p = probabilities(taken, lse)
        p_j = tl.exp2((given - lse_j[0][None, :]) - lse_j[1][None, :])
        dv += weighted_sum(p_j, grad_j, e, CHUNK, FULL_E, PRECISION)
        ds = p * (inner(grad, v_j, e, CHUNK, PRECISION) - delta[:, None])
        ds += p_j * (inner(v, grad_j, e, CHUNK, PRECISION) - delta_j[None, :])
        pull = (slope * ds).to(q[0].dtype)
        weight += tl.sum(pull.to(tl.float32), 1)
        pulled += weighted_sum(pull, q_j, d, CHUNK, FULL_D, PRECISION)
    dq = weight[:, None] * whole(q, d, CHUNK, FULL_D).to(tl.float32) - pulled
    store_tile(token_rows(DQ, head, HEADS, start, rows, dq_b, dq_h, dq_n), dq, valid, d, D, FULL_D)
    store_tile(token_rows(DV, head, HEADS, start, rows, dv_b, dv_h, dv_n), dv, valid, e, E, FULL_E)
