"""L2 attention of any length: a program owns a tile of tokens and walks over the others. No atomics, no N x N matrix.

Floor, for H (batch, head) pairs of N queries and M keys, s bytes an element (the row sums L, D, g, w are 4 N each):
                     bytes, everything read and written once          operations in the two passes
    forward          s (N d + M d + M e + N e)                        2 N M (d + e)
    backward         s (2 N d + 2 M d + 2 M e + 2 N e)                2 N M (4 d + 3 e)
    second order     s (3 N d + 3 M d + 3 M e + 2 N e)                2 N M (17 products of width d or e)
where K, its gradients and cotangents drop out with K = Q.

Rows passes own queries and write what belongs to them, with the row sums; keys passes own keys and read those sums.
With K = Q the rows pass leaves its gradient in float32 and the keys pass, which owns the same tokens, adds it.
"""

# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from vitgan_kernels.l2_attention.triton_tiles import (
    load_tile,
    probabilities,
    product,
    row_products,
    scores,
    second_order,
    store_lse,
    store_tile,
    tangents,
    token_rows,
)


@triton.jit
def forward(
    Q, K, V, OUT, LSE,
    q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """O and the log-sum-exp of a tile of queries, by an online softmax over the keys."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    q_rows = token_rows(Q, head, HEADS, start, rows, q_b, q_h, q_n)
    q = load_tile(q_rows, valid, d, D, FULL_D)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, E), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k_rows = token_rows(K, head, HEADS, first, keys, k_b, k_h, k_n)
        k = load_tile(k_rows, present, d, D, FULL_D)
        v = load_tile(token_rows(V, head, HEADS, first, keys, v_b, v_h, v_n), present, e, E, FULL_E)
        score, _, _ = scores(q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION)
        higher = tl.maximum(highest, tl.max(score, 1))
        p = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(p, 1)
        out = out * shrink[:, None] + product(p.to(v.dtype), v, PRECISION)
        highest = higher
    o_rows = token_rows(OUT, head, HEADS, start, rows, o_b, o_h, o_n)
    store_tile(o_rows, out / total[:, None], valid, e, E, FULL_E)
    store_lse(LSE, PLANE, head.to(tl.int64) * N + start + rows, valid, highest, total)


@triton.jit
def backward_rows(
    G, Q, K, V, OUT, LSE, DELTA, DQ,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dQ and D of a tile of queries; G is dO."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    q_rows = token_rows(Q, head, HEADS, start, rows, q_b, q_h, q_n)
    g_rows = token_rows(G, head, HEADS, start, rows, g_b, g_h, g_n)
    o_rows = token_rows(OUT, head, HEADS, start, rows, o_b, o_h, o_n)
    q = load_tile(q_rows, valid, d, D, FULL_D)
    grad = load_tile(g_rows, valid, e, E, FULL_E)
    delta = row_products(grad, load_tile(o_rows, valid, e, E, FULL_E))
    sums = head.to(tl.int64) * N + start + rows
    tl.store(DELTA + sums, delta, mask=valid)
    weight = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k_rows = token_rows(K, head, HEADS, first, keys, k_b, k_h, k_n)
        k = load_tile(k_rows, present, d, D, FULL_D)
        v = load_tile(token_rows(V, head, HEADS, first, keys, v_b, v_h, v_n), present, e, E, FULL_E)
        score, slope, _ = scores(q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION)
        ds = probabilities(score, LSE, PLANE, sums, valid) * (product(grad, tl.trans(v), PRECISION) - delta[:, None])
        pull = (slope * ds).to(k.dtype)
        weight += tl.sum(pull.to(tl.float32), 1)
        pulled += product(pull, k, PRECISION)
    dq_rows = token_rows(DQ, head, HEADS, start, rows, dq_b, dq_h, dq_n)
    store_tile(dq_rows, weight[:, None] * q.to(tl.float32) - pulled, valid, d, D, FULL_D)


@triton.jit
def backward_keys(
    G, Q, K, V, LSE, DELTA, DQ, DK, DV,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dK and dV of a tile of keys; with TIED, DQ, which the rows pass left, is added to dK."""
    tiles = tl.cdiv(M, KEYS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * KEYS
    keys = tl.arange(0, KEYS)
    present = start + keys < M
    k_rows = token_rows(K, head, HEADS, start, keys, k_b, k_h, k_n)
    v_rows = token_rows(V, head, HEADS, start, keys, v_b, v_h, v_n)
    k = load_tile(k_rows, present, d, D, FULL_D)
    v = load_tile(v_rows, present, e, E, FULL_E)
    offset = head.to(tl.int64) * N
    weight = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    rows = tl.arange(0, ROWS)
    for first in range(0, N, ROWS):
        valid = first + rows < N
        q_rows = token_rows(Q, head, HEADS, first, rows, q_b, q_h, q_n)
        q = load_tile(q_rows, valid, d, D, FULL_D)
        grad = load_tile(token_rows(G, head, HEADS, first, rows, g_b, g_h, g_n), valid, e, E, FULL_E)
        delta = tl.load(DELTA + offset + first + rows, mask=valid, other=0.0)
        score, slope, _ = scores(q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION)
        p = probabilities(score, LSE, PLANE, offset + first + rows, valid)
        dv += product(tl.trans(p.to(v.dtype)), grad, PRECISION)
        ds = p * (product(grad, tl.trans(v), PRECISION) - delta[:, None])
        pull = (slope * ds).to(k.dtype)
        weight += tl.sum(pull.to(tl.float32), 0)
        pulled += product(tl.trans(pull), q, PRECISION)
    dk = weight[:, None] * k.to(tl.float32) - pulled
    if TIED:
        dq_rows = token_rows(DQ, head, HEADS, start, keys, dq_b, dq_h, dq_n)
        dk += load_tile(dq_rows, present, d, D, FULL_D)
    dk_rows = token_rows(DK, head, HEADS, start, keys, dk_b, dk_h, dk_n)
    dv_rows = token_rows(DV, head, HEADS, start, keys, dv_b, dv_h, dv_n)
    store_tile(dk_rows, dk, present, d, D, FULL_D)
    store_tile(dv_rows, dv, present, e, E, FULL_E)


@triton.jit
def second_order_sums(
    A, B, C, G, Q, K, V, OUT, LSE, DELTA, MEAN_G, MEAN_W,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, o_b, o_h, o_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The row sums that the second order needs before its passes: D, g and w = sum P ((dP - D) G + X)."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    a_rows = token_rows(A, head, HEADS, start, rows, a_b, a_h, a_n)
    q_rows = token_rows(Q, head, HEADS, start, rows, q_b, q_h, q_n)
    g_rows = token_rows(G, head, HEADS, start, rows, g_b, g_h, g_n)
    o_rows = token_rows(OUT, head, HEADS, start, rows, o_b, o_h, o_n)
    a = load_tile(a_rows, valid, d, D, FULL_D)
    q = load_tile(q_rows, valid, d, D, FULL_D)
    grad = load_tile(g_rows, valid, e, E, FULL_E)
    delta = row_products(grad, load_tile(o_rows, valid, e, E, FULL_E))
    qa = row_products(q, a)
    sums = head.to(tl.int64) * N + start + rows
    mean_g = tl.zeros((ROWS,), tl.float32)
    mean_w = tl.zeros((ROWS,), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k_rows = token_rows(K, head, HEADS, first, keys, k_b, k_h, k_n)
        k = load_tile(k_rows, present, d, D, FULL_D)
        b = load_tile(token_rows(B, head, HEADS, first, keys, b_b, b_h, b_n), present, d, D, FULL_D)
        v = load_tile(token_rows(V, head, HEADS, first, keys, v_b, v_h, v_n), present, e, E, FULL_E)
        c = load_tile(token_rows(C, head, HEADS, first, keys, c_b, c_h, c_n), present, e, E, FULL_E)
        score, slope, _ = scores(q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION)
        p = probabilities(score, LSE, PLANE, sums, valid)
        tangent = slope * tangents(q, a, qa, k, b, row_products(k, b), PRECISION)
        mean_g += tl.sum(p * tangent, 1)
        dp = product(grad, tl.trans(v), PRECISION)
        x = product(grad, tl.trans(c), PRECISION)
        mean_w += tl.sum(p * ((dp - delta[:, None]) * tangent + x), 1)
    tl.store(DELTA + sums, delta, mask=valid)
    tl.store(MEAN_G + sums, mean_g, mask=valid)
    tl.store(MEAN_W + sums, mean_w, mask=valid)


@triton.jit
def second_order_rows(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DDO, DQ,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, ddo_b, ddo_h, ddo_n, dq_b, dq_h, dq_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """ddO and dQ2 of a tile of queries."""
    tiles = tl.cdiv(N, ROWS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * ROWS
    rows = tl.arange(0, ROWS)
    valid = start + rows < N
    a_rows = token_rows(A, head, HEADS, start, rows, a_b, a_h, a_n)
    q_rows = token_rows(Q, head, HEADS, start, rows, q_b, q_h, q_n)
    g_rows = token_rows(G, head, HEADS, start, rows, g_b, g_h, g_n)
    a = load_tile(a_rows, valid, d, D, FULL_D)
    q = load_tile(q_rows, valid, d, D, FULL_D)
    grad = load_tile(g_rows, valid, e, E, FULL_E)
    qa = row_products(q, a)
    sums = head.to(tl.int64) * N + start + rows
    delta = tl.load(DELTA + sums, mask=valid, other=0.0)
    mean_g = tl.load(MEAN_G + sums, mask=valid, other=0.0)
    mean_w = tl.load(MEAN_W + sums, mask=valid, other=0.0)
    weight_e = tl.zeros((ROWS,), tl.float32)
    weight_f = tl.zeros((ROWS,), tl.float32)
    pulled = tl.zeros((ROWS, D), tl.float32)
    ddo = tl.zeros((ROWS, E), tl.float32)
    keys = tl.arange(0, KEYS)
    for first in range(0, M, KEYS):
        present = first + keys < M
        k_rows = token_rows(K, head, HEADS, first, keys, k_b, k_h, k_n)
        k = load_tile(k_rows, present, d, D, FULL_D)
        b = load_tile(token_rows(B, head, HEADS, first, keys, b_b, b_h, b_n), present, d, D, FULL_D)
        v = load_tile(token_rows(V, head, HEADS, first, keys, v_b, v_h, v_n), present, e, E, FULL_E)
        c = load_tile(token_rows(C, head, HEADS, first, keys, c_b, c_h, c_n), present, e, E, FULL_E)
        score, slope, inverse = scores(
            q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION
        )
        p = probabilities(score, LSE, PLANE, sums, valid)
        y = tangents(q, a, qa, k, b, row_products(k, b), PRECISION)
        dp = product(grad, tl.trans(v), PRECISION)
        x = product(grad, tl.trans(c), PRECISION)
        r, pull_e, pull_f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
        ddo += product(r.to(v.dtype), v, PRECISION) + product(p.to(c.dtype), c, PRECISION)
        pull_e, pull_f = pull_e.to(k.dtype), pull_f.to(k.dtype)
        weight_e += tl.sum(pull_e.to(tl.float32), 1)
        weight_f += tl.sum(pull_f.to(tl.float32), 1)
        pulled += product(pull_e, b, PRECISION) + product(pull_f, k, PRECISION)
    dq = weight_e[:, None] * a.to(tl.float32) + weight_f[:, None] * q.to(tl.float32) - pulled
    ddo_rows = token_rows(DDO, head, HEADS, start, rows, ddo_b, ddo_h, ddo_n)
    dq_rows = token_rows(DQ, head, HEADS, start, rows, dq_b, dq_h, dq_n)
    store_tile(ddo_rows, ddo, valid, e, E, FULL_E)
    store_tile(dq_rows, dq, valid, d, D, FULL_D)


@triton.jit
def second_order_keys(
    A, B, C, G, Q, K, V, LSE, DELTA, MEAN_G, MEAN_W, DQ, DK, DV,
    a_b, a_h, a_n, b_b, b_h, b_n, c_b, c_h, c_n,
    g_b, g_h, g_n, q_b, q_h, q_n, k_b, k_h, k_n, v_b, v_h, v_n, dq_b, dq_h, dq_n, dk_b, dk_h, dk_n, dv_b, dv_h, dv_n,
    HEADS, N, M, d, e, PLANE, scale, score_scale,
    D: tl.constexpr, E: tl.constexpr, FULL_D: tl.constexpr, FULL_E: tl.constexpr,
    TIED: tl.constexpr, EUCLIDEAN: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """dK2 and dV2 of a tile of keys; with TIED, DQ, which the rows pass left, is added to dK2."""
    tiles = tl.cdiv(M, KEYS)
    head, start = tl.program_id(0) // tiles, (tl.program_id(0) % tiles) * KEYS
    keys = tl.arange(0, KEYS)
    present = start + keys < M
    k_rows = token_rows(K, head, HEADS, start, keys, k_b, k_h, k_n)
    b_rows = token_rows(B, head, HEADS, start, keys, b_b, b_h, b_n)
    v_rows = token_rows(V, head, HEADS, start, keys, v_b, v_h, v_n)
    c_rows = token_rows(C, head, HEADS, start, keys, c_b, c_h, c_n)
    k = load_tile(k_rows, present, d, D, FULL_D)
    b = load_tile(b_rows, present, d, D, FULL_D)
    v = load_tile(v_rows, present, e, E, FULL_E)
    c = load_tile(c_rows, present, e, E, FULL_E)
    kb = row_products(k, b)
    offset = head.to(tl.int64) * N
    weight_e = tl.zeros((KEYS,), tl.float32)
    weight_f = tl.zeros((KEYS,), tl.float32)
    pulled = tl.zeros((KEYS, D), tl.float32)
    dv = tl.zeros((KEYS, E), tl.float32)
    rows = tl.arange(0, ROWS)
    for first in range(0, N, ROWS):
        valid = first + rows < N
        q_rows = token_rows(Q, head, HEADS, first, rows, q_b, q_h, q_n)
        q = load_tile(q_rows, valid, d, D, FULL_D)
        a = load_tile(token_rows(A, head, HEADS, first, rows, a_b, a_h, a_n), valid, d, D, FULL_D)
        grad = load_tile(token_rows(G, head, HEADS, first, rows, g_b, g_h, g_n), valid, e, E, FULL_E)
        delta = tl.load(DELTA + offset + first + rows, mask=valid, other=0.0)
        mean_g = tl.load(MEAN_G + offset + first + rows, mask=valid, other=0.0)
        mean_w = tl.load(MEAN_W + offset + first + rows, mask=valid, other=0.0)
        score, slope, inverse = scores(
            q, q_rows, valid, k, k_rows, present, scale, score_scale, d, EUCLIDEAN, PRECISION
        )
        p = probabilities(score, LSE, PLANE, offset + first + rows, valid)
        y = tangents(q, a, row_products(q, a), k, b, kb, PRECISION)
        dp = product(grad, tl.trans(v), PRECISION)
        x = product(grad, tl.trans(c), PRECISION)
        r, pull_e, pull_f = second_order(p, dp, y, x, slope, inverse, delta, mean_g, mean_w, EUCLIDEAN)
        dv += product(tl.trans(r.to(v.dtype)), grad, PRECISION)
        pull_e, pull_f = pull_e.to(k.dtype), pull_f.to(k.dtype)
        weight_e += tl.sum(pull_e.to(tl.float32), 0)
        weight_f += tl.sum(pull_f.to(tl.float32), 0)
        pulled += product(tl.trans(pull_e), a, PRECISION) + product(tl.trans(pull_f), q, PRECISION)
    dk = weight_e[:, None] * b.to(tl.float32) + weight_f[:, None] * k.to(tl.float32) - pulled
    if TIED:
        dq_rows = token_rows(DQ, head, HEADS, start, keys, dq_b, dq_h, dq_n)
        dk += load_tile(dq_rows, present, d, D, FULL_D)
    dk_rows = token_rows(DK, head, HEADS, start, keys, dk_b, dk_h, dk_n)
    dv_rows = token_rows(DV, head, HEADS, start, keys, dv_b, dv_h, dv_n)
    store_tile(dk_rows, dk, present, d, D, FULL_D)
    store_tile(dv_rows, dv, present, e, E, FULL_E)
