// Double backward of L2 attention for some rows of one (batch, head).
#pragma once

#include "l2_attention_differences.h"

namespace vitgan {
namespace VITGAN_LEVEL {

// Arrays of a block, (rows x Mp): scores, then P; gradients, then the weights of A and B; outer, then W, then the weights of
// Q and K; tangents, then R.
struct DoubleBackwardMemory {
  Head head;
  float *VT, *BT, *CT, *A, *B, *C, *grad, *a_products, *b_products;
  float *gradients, *outer, *tangents, *inverse_distances, *raw_tangents, *dout;
  DifferenceMemory first, second;
  DoubleBackwardMemory(const L2Call& call, Arena& arena)
      : head(call, arena, 1 << 16, call.euclidean ? 6 : 4), VT(arena.take(head.e * head.Mp)),
        BT(arena.take(head.d * head.Mp)), CT(arena.take(head.e * head.Mp)), A(arena.take(head.N * head.dp)),
        B(call.tied ? A : arena.take(head.M * head.dp)), C(arena.take(head.M * head.ep)),
        grad(arena.take(head.N * head.ep)),
        a_products(arena.take(up(head.N))), b_products(arena.take(head.Mp)),
        gradients(arena.take((head.block + VL) * head.Mp)), outer(arena.take((head.block + VL) * head.Mp)),
        tangents(arena.take(head.block * head.Mp)),
        inverse_distances(call.euclidean ? arena.take(head.block * head.Mp) : nullptr),
        raw_tangents(call.euclidean ? arena.take(head.block * head.Mp) : nullptr),
        dout(arena.take(head.block * head.ep)), first(head, arena), second(head, arena) {}
};

// P, and the tangent of the scores; leaves sum_j P_ij T_ij and D_i = sum_j P_ij dP_ij of so many rows in vectors.
template <bool EUCLIDEAN>
INLINE void tangent_rows(const DoubleBackwardMemory& m, Index i0, Index from, Index to, const float* shift,
                         const float* inverse, float* part, float* delta_part) {
  const Head& h = m.head;
  const bool self_is_best = h.self_is_best;
  const Index Mp = h.Mp;
  const vf scale = splat(EUCLIDEAN ? h.call.scale : 2 * h.call.scale);
  for (Index i = from; i < to; ++i, part += VL, delta_part += VL) {
    float *const s = h.scores + i * Mp, *const t = m.tangents + i * Mp, *const g = m.gradients + i * Mp;
    const vf shift_i = splat(shift[i0 + i]), inverse_i = splat(inverse[i0 + i]), qa = splat(m.a_products[i0 + i]);
    vf mean = {}, delta = {};
    for (Index j = 0; j < Mp; j += VL) {
      const vf p = weight_of(self_is_best, load(s + j), load(h.norms + j), shift_i) * inverse_i;
      vf tangent;
      if constexpr (EUCLIDEAN) {
        tangent = -(scale * load(m.inverse_distances + i * Mp + j) * load(t + j));
        store(m.raw_tangents + i * Mp + j, tangent);
      } else {
        tangent = scale * (load(t + j) - (qa + load(m.b_products + j)));
      }
      mean += p * tangent;
      delta += p * load(g + j);
      store(s + j, p);
      store(t + j, tangent);
    }
    store(part, mean);
    store(delta_part, delta);
  }
}

// R = P * (T - g), and W = (dP - D) * (T - g) + X; leaves sum_j P_ij W_ij.
INLINE void weight_rows(const DoubleBackwardMemory& m, Index from, Index to, const float* deltas, const float* means,
                        float* part) {
  const Index Mp = m.head.Mp;
  for (Index i = from; i < to; ++i, part += VL) {
    float *const s = m.head.scores + i * Mp, *const g = m.gradients + i * Mp, *const x = m.outer + i * Mp,
          *const t = m.tangents + i * Mp;
    const vf delta = splat(deltas[i - from]), mean_tangent = splat(means[i - from]);
    vf mean = {};
    for (Index j = 0; j < Mp; j += VL) {
      const vf p = load(s + j), tangent = load(t + j) - mean_tangent;
      const vf w = (load(g + j) - delta) * tangent + load(x + j);
      mean += p * w;
      store(t + j, p * tangent);
      store(x + j, w);
    }
    store(part, mean);
  }
}

// The weights of the differences, E of A and B, F of Q and K.
template <bool EUCLIDEAN>
INLINE void difference_rows(const DoubleBackwardMemory& m, Index from, Index to, const float* deltas, const float* means) {
  const Index Mp = m.head.Mp;
  float *const e_sums = m.first.key_sums, *const f_sums = m.second.key_sums;
  const vf scale = splat(EUCLIDEAN ? m.head.call.scale : 2 * m.head.call.scale);
  for (Index i = from; i < to; ++i) {
    float *const s = m.head.scores + i * Mp, *const g = m.gradients + i * Mp, *const x = m.outer + i * Mp;
    const vf delta = splat(deltas[i - from]), mean = splat(means[i - from]);
    vf e_total = {}, f_total = {};
    for (Index j = 0; j < Mp; j += VL) {
      const vf p = load(s + j);
      if constexpr (EUCLIDEAN) {
        const vf inverse = load(m.inverse_distances + i * Mp + j), slope = scale * inverse;
        const vf ds = p * (load(g + j) - delta);
        store(g + j, slope * ds);
        store(x + j, slope * p * (load(x + j) - mean) + inverse * inverse * load(m.raw_tangents + i * Mp + j) * ds);
      } else {
        const vf slope = scale * p, e = slope * (load(g + j) - delta), f = slope * (load(x + j) - mean);
        e_total += e;
        f_total += f;
        store(e_sums + j, load(e_sums + j) + e);
        store(f_sums + j, load(f_sums + j) + f);
        store(g + j, e);
        store(x + j, f);
      }
    }
    store(m.first.part + i * VL, e_total);
    store(m.second.part + i * VL, f_total);
  }
}

template <bool EUCLIDEAN>
static void double_backward_rows(const DoubleBackwardMemory& m, Index i0, Index rows, const float* shift,
                                 const float* inverse) {
  fill(m.first.key_sums, 0, m.head.Mp);
  fill(m.second.key_sums, 0, m.head.Mp);
  for (Index from = 0; from < rows; from += VL) {  // a few rows at a time, while they are in the nearest cache
    const Index to = smaller(from + VL, rows);
    alignas(64) float part[VL * VL] = {}, delta_part[VL * VL] = {};
    float means[VL], deltas[VL];
    tangent_rows<EUCLIDEAN>(m, i0, from, to, shift, inverse, part, delta_part);
    store(means, row_sums(part, VL));
    store(deltas, row_sums(delta_part, VL));
    weight_rows(m, from, to, deltas, means, part);
    store(means, row_sums(part, VL));
    difference_rows<EUCLIDEAN>(m, from, to, deltas, means);
  }
}

static void double_backward(const L2Call& call, Index head, Index first, Index rows, float* sums_memory, float* memory) {
  Arena arena(memory), sums_arena(sums_memory);
  DoubleBackwardMemory m(call, arena);
  const Sums sums(call, sums_arena);
  Head& h = m.head;
  h.read(head);
  const Rows grad = h.rows_of(call.grad, head, 0, h.N, h.e, m.grad), A = h.rows_of(call.a, head, 0, h.N, h.d, m.A),
             B = call.tied ? A : h.rows_of(call.b, head, 0, h.M, h.d, m.B),
             C = h.rows_of(call.c, head, 0, h.M, h.e, m.C);
  transpose_tiles(h.V, h.e, h.tiles, m.VT);
  transpose_tiles(B, h.d, h.tiles, m.BT);
  transpose_tiles(C, h.e, h.tiles, m.CT);
  if (!call.euclidean) {
    row_products(h.Q, A, h.N, h.dp, 1.f, m.a_products);
    row_products(h.K, B, h.M, h.dp, 1.f, m.b_products);
    for (Index j = h.M; j < h.Mp; ++j) m.b_products[j] = 0;
  }
  const float *const shift = call.shift + head * h.N, *const inverse = call.inverse + head * h.N;
  if (call.tied) fill(sums.dK, 0, h.M * h.dp);
  for (Index i0 = first, end = first + rows; i0 < end; i0 += h.block) {
    const Index n = smaller(end - i0, h.block);
    const Rows Q = h.Q.from(i0), A_block = A.from(i0), grad_block = grad.from(i0);
    h.compute_scores(i0, n, m.inverse_distances);
    h.rows_times_tiles(grad_block, n, m.VT, h.e, m.gradients, false);
    h.rows_times_tiles(grad_block, n, m.CT, h.e, m.outer, false);
    if (call.euclidean) {
      h.compute_tangents(Q, A_block, n, m.BT, m.tangents);
      double_backward_rows<true>(m, i0, n, shift, inverse);
    } else {
      h.rows_times_tiles(Q, n, m.BT, h.d, m.tangents, false);
      h.rows_times_tiles(A_block, n, h.KT, h.d, m.tangents, true);
      double_backward_rows<false>(m, i0, n, shift, inverse);
    }
    h.weigh_keys(m.tangents, n, h.V, h.ep, m.dout, false);
    h.weigh_keys(h.scores, n, C, h.ep, m.dout, true);
    h.write(call.dout, head, i0, n, h.e, m.dout);
    h.weigh_rows(m.tangents, n, grad_block, h.ep, sums.dV, i0 > first);
    m.first.finish_sums(n);
    m.second.finish_sums(n);
    float* const dQ = call.tied ? sums.dK + i0 * h.dp : m.first.dQ;
    add_differences(h, n, m.gradients, A_block, B, m.first, {dQ, call.tied, sums.dK, call.tied || i0 > first});
    add_differences(h, n, m.outer, Q, h.K, m.second, {dQ, true, sums.dK, true});
    if (!call.tied) h.write(call.dq, head, i0, n, h.d, dQ);
  }
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
