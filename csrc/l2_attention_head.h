// One (batch, head) of L2 attention as the passes see it: rows of floats padded to whole vectors, keys transposed in
// tiles, and the scores of a block of rows.
#pragma once

#include "l2_attention.h"
#include "l2_attention_tiles.h"

namespace vitgan {
namespace VITGAN_LEVEL {

constexpr float kLog2E = 1.44269504088896340736f;

// Memory dealt out piece by piece. From address 0 it only counts.
struct Arena {
  unsigned long long base, used = 0;
  explicit Arena(float* memory) : base((unsigned long long)memory) {}
  float* take(Index floats) {
    float* const p = (float*)(base + used);
    used += (unsigned long long)(floats * 4 + 63) / 64 * 64 + 64;  // and a line, so that rows do not share sets of the cache
    return p;
  }
  Index floats() const { return (Index)(used / 4); }
};

struct Rows {
  const float* p;
  Index ld;
  Rows from(Index i) const { return {p + i * ld, ld}; }
};

// n rows of a view as floats, with zeros up to ld
static inline void read_rows(const L2View& x, bool is_bf16, Index offset, Index n, Index width, float* to, Index ld) {
  for (Index i = 0; i < n; ++i, offset += x.token, to += ld) {
    Index j = 0;
    if (is_bf16) {
      const bf16* const from = (const bf16*)x.data + offset;
      for (; j + VL <= width; j += VL) store(to + j, from_bf16(from + j));
      for (; j < width; ++j) to[j] = from_bf16(from[j]);
    } else {
      const float* const from = (const float*)x.data + offset;
      for (; j + VL <= width; j += VL) store(to + j, load(from + j));
      for (; j < width; ++j) to[j] = from[j];
    }
    for (; j < ld; ++j) to[j] = 0;
  }
}
INLINE void write_row(const L2View& x, bool is_bf16, Index offset, Index width, const float* row) {
  Index j = 0;
  if (is_bf16) {
    bf16* const to = (bf16*)x.data + offset;
    for (; j + VL <= width; j += VL) to_bf16(to + j, load(row + j));
    if (j < width) {
      bf16 last[VL];
      to_bf16(last, load(row + j));
      for (Index i = 0; j < width; ++j, ++i) to[j] = last[i];
    }
  } else {
    float* const to = (float*)x.data + offset;
    for (; j + VL <= width; j += VL) store(to + j, load(row + j));
    for (; j < width; ++j) to[j] = row[j];
  }
}

// out[i] = scale * <x_i, y_i> for i below n; writes up(n)
static inline void row_products(Rows x, Rows y, Index n, Index width, float scale, float* out) {
  for (Index i = 0; i < n; i += VL) {
    alignas(64) float part[VL * VL];
    const Index rows = smaller(n - i, VL);
    for (Index r = 0; r < rows; ++r) {
      vf s = {};
      for (Index j = 0; j < width; j += VL) s += load(x.p + (i + r) * x.ld + j) * load(y.p + (i + r) * y.ld + j);
      store(part + r * VL, s);
    }
    for (Index r = rows; r < VL; ++r) store(part + r * VL, (vf){});
    store(out + i, splat(scale) * row_sums(part, VL));
  }
}

// Moves the origin to the median of the means of three groups of keys: `centred` in reference.py of the Python package.
static inline void centre(float* K, Index m, float* Q, Index n, Index ld) {
  const Index each = smaller(larger(m / 3, 1), 16), stride = larger(m / (3 * each), 1);
  const Index left_out = larger(m - 3 * each * stride, 0), count = smaller(3 * each, m), groups = count / each;
  for (Index j = 0; j < ld; j += VL) {
    vf mean[3];
    for (Index g = 0; g < groups; ++g) {
      vf s = {};
      for (Index r = g; r < count; r += groups) s += load(K + (left_out / 2 + r * stride) * ld + j);
      mean[g] = s * (1.f / float(each));
    }
    const vf first = mean[0], last = mean[groups - 1], middle = mean[groups / 2];
    const vf low = -larger(-first, -last), high = larger(first, last);
    const vf origin = larger(low, -larger(-high, -middle));
    for (Index i = 0; i < m; ++i) store(K + i * ld + j, load(K + i * ld + j) - origin);
    if (Q == K) continue;
    for (Index i = 0; i < n; ++i) store(Q + i * ld + j, load(Q + i * ld + j) - origin);
  }
}

// Keys in tiles of at most kWidest vectors, as even as can be.
struct KeyTiles {
  static constexpr Index kWidest = VL == 16 ? 5 : 8;
  Index keys, vectors, count;
  explicit KeyTiles(Index m) : keys(m), vectors(up(m) / VL), count((vectors + kWidest - 1) / kWidest) {}
  Index start(Index t) const { return t * vectors / count * VL; }
  Index end(Index t) const { return smaller(start(t + 1), keys); }
};

// The transpose of K (m x width), tile by tile: tile t begins at width * start(t), its rows as long as the tile is wide.
static inline void transpose_tiles(Rows K, Index width, const KeyTiles& tiles, float* to) {
  for (Index t = 0; t < tiles.count; ++t) {
    const Index j0 = tiles.start(t), columns = tiles.start(t + 1) - j0, rows = tiles.end(t) - j0;
    float* const tile = to + width * j0;
    if (rows < columns) {
      for (Index k = 0; k < width; ++k) {
        for (Index i = rows / VL * VL; i < columns; i += VL) store(tile + k * columns + i, (vf){});
      }
    }
    transpose(K.p + j0 * K.ld, rows, width, K.ld, tile, columns);
  }
}

struct Head {
  const L2Call& call;
  const Index N, M, d, e, dp, ep, Mp;  // padded to vectors: d, e, M
  const KeyTiles tiles;
  Index block;        // rows whose scores are in memory at a time
  bool self_is_best;  // a row's largest score is that of its own token, so that no maximum is looked for
  Rows Q, K, V;
  float *Q_memory, *K_memory, *V_memory, *Q_scaled, *KT, *norms;
  float* scores;

  // so many arrays of scores, of so many floats in all
  Head(const L2Call& call, Arena& arena, Index budget, int arrays)
      : call(call), N(call.N), M(call.M), d(call.d), e(call.e), dp(up(d)), ep(up(e)), Mp(up(M)), tiles(M) {
    block = budget / (arrays * Mp);
    block = block >= N ? N : smaller(larger(block / 12 * 12, 12), N);
    self_is_best = call.tied && call.scale >= 0;
    Q_memory = arena.take(N * dp);
    K_memory = call.tied ? Q_memory : arena.take(M * dp);
    V_memory = arena.take(M * ep);
    Q_scaled = call.euclidean ? nullptr : arena.take(N * dp);
    KT = arena.take(d * Mp);
    norms = arena.take(Mp);
    scores = arena.take(block * Mp);
  }

  Index offset(const L2View& x, Index head) const { return head / call.H * x.batch + head % call.H * x.head; }

  // rows of a view where they lie, if they are padded floats there, else copied to memory
  Rows rows_of(const L2View& x, Index head, Index first, Index n, Index width, float* memory) const {
    const Index at = offset(x, head) + first * x.token;
    if (!call.bf16 && width % VL == 0) return {(const float*)x.data + at, x.token};
    read_rows(x, call.bf16, at, n, width, memory, up(width));
    return {memory, up(width)};
  }

  void write(const L2View& to, Index head, Index first, Index n, Index width, const float* from) const {
    const Index at = offset(to, head) + first * to.token;
    for (Index i = 0; i < n; ++i) write_row(to, call.bf16, at + i * to.token, width, from + i * up(width));
  }

  void read(Index head) {
    V = rows_of(call.v, head, 0, M, e, V_memory);
    if (call.euclidean) {
      Q = rows_of(call.q, head, 0, N, d, Q_memory);
      K = call.tied ? Q : rows_of(call.k, head, 0, M, d, K_memory);
      fill(norms, 0, M);
    } else {
      read_rows(call.q, call.bf16, offset(call.q, head), N, d, Q_memory, dp);
      if (!call.tied) read_rows(call.k, call.bf16, offset(call.k, head), M, d, K_memory, dp);
      centre(K_memory, M, Q_memory, N, dp);
      Q = {Q_memory, dp};
      K = {K_memory, dp};
      const float c = call.scale * kLog2E;
      for (Index i = 0; i < N * dp; i += VL) store(Q_scaled + i, splat(2 * c) * load(Q_memory + i));
      row_products(K, K, M, dp, c, norms);
    }
    for (Index j = M; j < Mp; ++j) norms[j] = __builtin_inff();  // no weight for what pads the keys
    transpose_tiles(K, d, tiles, KT);
  }

  // 2 c q.k, or -c |q - k|, c = scale log2(e), for rows i0, ...; of the distance its inverse too, 0 at 0, where asked for
  void compute_scores(Index i0, Index rows, float* inverse_distances) const {
    if (!call.euclidean) return rows_times_tiles({Q_scaled + i0 * dp, dp}, rows, KT, d, scores, false);
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), columns = tiles.start(t + 1) - j0;
      add_up(SquaredDistance{Q.from(i0).p, Q.ld, KT + d * j0, columns}, rows, columns / VL, d, scores + j0, Mp, false);
    }
    const vf c = splat(-call.scale * kLog2E);
    for (Index i = 0; i < rows * Mp; i += VL) {
      const vf distance = root(load(scores + i));
      store(scores + i, c * distance);
      if (inverse_distances) store(inverse_distances + i, distance == 0.f ? (vf){} : 1.f / distance);
    }
  }

  // (rows x Mp): (q_i - k_j) (x_i - y_j), where Y^T (d x M) lies in tiles
  void compute_tangents(Rows Q_block, Rows X, Index rows, const float* YT, float* to) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), columns = tiles.start(t + 1) - j0;
      const DistanceTangent tangent{Q_block.p, X.p, Q_block.ld, X.ld, KT + d * j0, YT + d * j0, columns};
      add_up(tangent, rows, columns / VL, d, to + j0, Mp, false);
    }
  }

  // (rows x Mp) (+)= X T, where T (width x M) lies in tiles
  void rows_times_tiles(Rows X, Index rows, const float* T, Index width, float* to, bool add) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), columns = tiles.start(t + 1) - j0;
      multiply(rows, columns / VL, width, X.p, X.ld, 1, T + width * j0, columns, to + j0, Mp, add);
    }
  }
  // (rows x width) (+)= W Y, with weights W (rows x Mp)
  void weigh_keys(const float* W, Index rows, Rows Y, Index width, float* to, bool add) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), j1 = tiles.end(t);
      multiply(rows, width / VL, j1 - j0, W + j0, Mp, 1, Y.from(j0).p, Y.ld, to, width, add || t > 0);
    }
  }
  // (M x width) (+)= W^T X
  void weigh_rows(const float* W, Index rows, Rows X, Index width, float* to, bool add) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), j1 = tiles.end(t);
      multiply(j1 - j0, width / VL, rows, W + j0, 1, Mp, X.p, X.ld, to + j0 * width, width, add);
    }
  }
  // (rows x dp) (+)= sum_j W_ij (y_j - x_i)
  void weigh_key_differences(const float* W, Index rows, Rows X, Rows Y, float* to, bool add) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), j1 = tiles.end(t);
      add_up(WeightedDifference{W + j0, Mp, 1, X.p, X.ld, Y.from(j0).p, Y.ld}, rows, dp / VL, j1 - j0, to, dp, add || t > 0);
    }
  }
  // (M x dp) (+)= sum_i W_ij (x_i - y_j)
  void weigh_row_differences(const float* W, Index rows, Rows X, Rows Y, float* to, bool add) const {
    for (Index t = 0; t < tiles.count; ++t) {
      const Index j0 = tiles.start(t), j1 = tiles.end(t);
      add_up(WeightedDifference{W + j0, 1, Mp, Y.from(j0).p, Y.ld, X.p, X.ld}, j1 - j0, dp / VL, rows, to + j0 * dp, dp, add);
    }
  }
};

// 2^(score - shift) of one vector of keys. No product in here: fused with a sum in one pass and not in another, it would
// give two different probabilities from the same score.
INLINE vf weight_of(bool self_is_best, vf score, vf norm, vf shift) {
  return exp2(self_is_best ? score - (norm + shift) : score - norm - shift);
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
