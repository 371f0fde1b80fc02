// Forward and backward of L2 attention for some rows of one (batch, head).
#pragma once

#include "l2_attention_differences.h"

namespace vitgan {
namespace VITGAN_LEVEL {

struct ForwardMemory {
  Head head;
  float* out;
  ForwardMemory(const L2Call& call, Arena& arena)
      : head(call, arena, 1 << 15, 1), out(arena.take(head.block * head.ep)) {}
};

// The weights of a block of rows in place of its scores, and 1 / their sums.
static void soften(const Head& h, Index i0, Index rows, float* shift, float* inverse) {
  const bool self_is_best = h.self_is_best, euclidean = h.call.euclidean;
  const Index Mp = h.Mp;
  const float* const norms = h.norms;
  for (Index first = 0; first < rows; first += VL) {
    const Index count = smaller(rows - first, VL);
    alignas(64) float part[VL * VL];
    for (Index i = 0; i < count; ++i) {
      float* const s = h.scores + (first + i) * Mp;
      float m;
      if (self_is_best) {
        m = euclidean ? 0 : norms[i0 + first + i];
      } else {
        vf best = splat(-__builtin_inff());
        for (Index j = 0; j < Mp; j += VL) best = larger(best, load(s + j) - load(norms + j));
        m = largest(best);
      }
      const vf shift_i = splat(m);
      vf total = {};
      for (Index j = 0; j < Mp; j += VL) {
        const vf w = weight_of(self_is_best, load(s + j), load(norms + j), shift_i);
        total += w;
        store(s + j, w);
      }
      shift[i0 + first + i] = m;
      store(part + i * VL, total);
    }
    for (Index i = count; i < VL; ++i) store(part + i * VL, splat(1.f));
    const vf inverses = 1.f / row_sums(part, VL);
    for (Index i = 0; i < count; ++i) inverse[i0 + first + i] = inverses[i];
  }
}

static void forward(const L2Call& call, Index head, Index first, Index rows, float* memory) {
  Arena arena(memory);
  ForwardMemory m(call, arena);
  Head& h = m.head;
  h.read(head);
  for (Index i0 = first, end = first + rows; i0 < end; i0 += h.block) {
    const Index n = smaller(end - i0, h.block);
    h.compute_scores(i0, n, nullptr);
    soften(h, i0, n, call.shift + head * h.N, call.inverse + head * h.N);
    h.weigh_keys(h.scores, n, h.V, h.ep, m.out, false);
    for (Index i = 0; i < n; ++i) {
      float* const out = m.out + i * h.ep;
      const vf inverse = splat(call.inverse[head * h.N + i0 + i]);
      for (Index j = 0; j < h.ep; j += VL) store(out + j, inverse * load(out + j));
    }
    h.write(call.out, head, i0, n, h.e, m.out);
  }
}

struct BackwardMemory {
  Head head;
  float *VT, *grad, *gradients, *inverse_distances;
  DifferenceMemory differences;
  BackwardMemory(const L2Call& call, Arena& arena)
      : head(call, arena, 1 << 15, call.euclidean ? 3 : 2), VT(arena.take(head.e * head.Mp)),
        grad(arena.take(head.N * head.ep)), gradients(arena.take((head.block + VL) * head.Mp)),
        inverse_distances(call.euclidean ? arena.take(head.block * head.Mp) : nullptr), differences(head, arena) {}
};

// In place of the scores the probabilities P, in place of dP the weights of differences: slope * P * (dP - D), where slope
// is twice the derivative of a score by the squared distance, but for its sign. D = sum_j P_ij dP_ij from these same numbers
// makes the weights of a row sum to nearly nothing, which dO.O, rounded elsewhere, does not.
template <bool EUCLIDEAN>
static void backward_rows(const BackwardMemory& m, Index i0, Index rows, const float* shift, const float* inverse) {
  const Head& h = m.head;
  const bool self_is_best = h.self_is_best;
  const Index Mp = h.Mp;
  const float* const norms = h.norms;
  float* const key_sums = m.differences.key_sums;
  const vf scale = splat(EUCLIDEAN ? h.call.scale : 2 * h.call.scale);
  fill(key_sums, 0, Mp);
  for (Index from = 0; from < rows; from += VL) {  // a few rows at a time, while they are in the nearest cache
    const Index to = smaller(from + VL, rows);
    alignas(64) float part[VL * VL] = {};
    float delta[VL];
    for (Index i = from; i < to; ++i) {
      float *const s = h.scores + i * Mp, *const g = m.gradients + i * Mp;
      const vf shift_i = splat(shift[i0 + i]), inverse_i = splat(inverse[i0 + i]);
      vf total = {};
      for (Index j = 0; j < Mp; j += VL) {
        const vf p = weight_of(self_is_best, load(s + j), load(norms + j), shift_i) * inverse_i;
        total += p * load(g + j);
        store(s + j, p);
      }
      store(part + (i - from) * VL, total);
    }
    store(delta, row_sums(part, VL));
    for (Index i = from; i < to; ++i) {
      float *const s = h.scores + i * Mp, *const g = m.gradients + i * Mp;
      const vf delta_i = splat(delta[i - from]);
      vf total = {};
      for (Index j = 0; j < Mp; j += VL) {
        const vf slope = EUCLIDEAN ? scale * load(m.inverse_distances + i * Mp + j) : scale;
        const vf w = slope * load(s + j) * (load(g + j) - delta_i);
        if constexpr (!EUCLIDEAN) {
          total += w;
          store(key_sums + j, load(key_sums + j) + w);
        }
        store(g + j, w);
      }
      store(m.differences.part + i * VL, total);
    }
  }
}

static void backward(const L2Call& call, Index head, Index first, Index rows, float* sums_memory, float* memory) {
  Arena arena(memory), sums_arena(sums_memory);
  BackwardMemory m(call, arena);
  const Sums sums(call, sums_arena);
  Head& h = m.head;
  h.read(head);
  const Rows grad = h.rows_of(call.grad, head, first, rows, h.e, m.grad);
  transpose_tiles(h.V, h.e, h.tiles, m.VT);
  const float *const shift = call.shift + head * h.N, *const inverse = call.inverse + head * h.N;
  if (call.tied) fill(sums.dK, 0, h.M * h.dp);
  for (Index i0 = first, end = first + rows; i0 < end; i0 += h.block) {
    const Index n = smaller(end - i0, h.block);
    const Rows grad_block = grad.from(i0 - first);
    h.compute_scores(i0, n, m.inverse_distances);
    h.rows_times_tiles(grad_block, n, m.VT, h.e, m.gradients, false);
    if (call.euclidean) backward_rows<true>(m, i0, n, shift, inverse);
    else backward_rows<false>(m, i0, n, shift, inverse);
    h.weigh_rows(h.scores, n, grad_block, h.ep, sums.dV, i0 > first);
    m.differences.finish_sums(n);
    float* const dQ = call.tied ? sums.dK + i0 * h.dp : m.differences.dQ;
    add_differences(h, n, m.gradients, h.Q.from(i0), h.K, m.differences, {dQ, call.tied, sums.dK, call.tied || i0 > first});
    if (!call.tied) h.write(call.dq, head, i0, n, h.d, dQ);
  }
}

static void write_sums(const L2Call& call, Index head, const float* sums_memory) {
  Arena arena(const_cast<float*>(sums_memory));
  const Sums sums(call, arena);
  const auto write = [&](const L2View& to, Index width, const float* from) {
    const Index at = head / call.H * to.batch + head % call.H * to.head;
    for (Index j = 0; j < call.M; ++j) write_row(to, call.bf16, at + j * to.token, width, from + j * up(width));
  };
  write(call.tied ? call.dq : call.dk, call.d, sums.dK);
  write(call.dv, call.e, sums.dV);
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
