// Vectors of floats by GCC's and Clang's vector extensions: no intrinsics, so that one text serves every level (levels.h).
//
// A product and a sum become one fused instruction wherever the level has it (-ffp-contract=fast): the same inputs give
// the same bits on every machine of a level, whatever the threads, and other roundings on another level. What two
// functions must compute to the same bits has no product whose sum one of them might fuse and the other not.
#pragma once

#if defined(__AVX512F__)
#define VITGAN_LANES 16
#elif defined(__AVX2__)
#define VITGAN_LANES 8
#else
#define VITGAN_LANES 4
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER
#define UNROLL _Pragma("GCC unroll 16")

namespace vitgan {
namespace VITGAN_LEVEL {

typedef long long Index;
constexpr int VL = VITGAN_LANES;
typedef float vf __attribute__((vector_size(VL * 4)));
typedef int vi __attribute__((vector_size(VL * 4)));
typedef unsigned vu __attribute__((vector_size(VL * 4)));
typedef unsigned short vh __attribute__((vector_size(VL * 2)));
typedef float vf_unaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef unsigned short vh_unaligned __attribute__((vector_size(VL * 2), aligned(2), may_alias));
typedef unsigned short bf16;  // the upper half of a float

INLINE Index up(Index n) { return (n + VL - 1) / VL * VL; }
INLINE Index smaller(Index a, Index b) { return a < b ? a : b; }
INLINE Index larger(Index a, Index b) { return a < b ? b : a; }

INLINE vf load(const float* p) { return *(const vf_unaligned*)p; }
INLINE void store(float* p, vf x) { *(vf_unaligned*)p = x; }
INLINE vf splat(float x) { return x - (vf){}; }
INLINE vf bits_as_float(vi x) { return (vf)x; }
INLINE vi bits_as_int(vf x) { return (vi)x; }
INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

INLINE void fill(float* p, float value, Index n) {
  Index i = 0;
  for (; i + VL <= n; i += VL) store(p + i, splat(value));
  for (; i < n; ++i) p[i] = value;
}

// --- Reductions, in an order that does not depend on where the numbers lie.

INLINE float sum(vf x) {
  float lanes[VL];
  store(lanes, x);
  UNROLL
  for (int half = VL / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
// Not-a-number wins, as in PyTorch.
INLINE vf larger(vf a, vf b) { return (a > b) | (a != a) ? a : b; }
INLINE float largest(vf x) {
  float lanes[VL];
  store(lanes, x);
  float best = lanes[0];
  for (int i = 1; i < VL; ++i) best = lanes[i] > best || lanes[i] != lanes[i] ? lanes[i] : best;
  return best;
}

// --- bfloat16, rounded to nearest even; not-a-number stays one.

INLINE vf from_bf16(const bf16* p) { return (vf)(__builtin_convertvector(*(const vh_unaligned*)p, vu) << 16); }
INLINE float from_bf16(bf16 x) {
  const union { unsigned bits; float value; } word = {(unsigned)x << 16};
  return word.value;
}
INLINE void to_bf16(bf16* p, vf x) {
  const vu u = (vu)x;
  const vu rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  *(vh_unaligned*)p = __builtin_convertvector(x == x ? rounded : (u >> 16) | 0x40u, vh);
}

// --- Squares of VL vectors: transposition and the sum of each row, by VL log2(VL) exchanges of registers.

#if VITGAN_LANES == 16
#define VITGAN_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#elif VITGAN_LANES == 8
#define VITGAN_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define VITGAN_EACH_LANE(f) f(0), f(1), f(2), f(3)
#endif
#define VITGAN_LOW(lane) ((lane) & S) ? VL + ((lane) ^ S) : (lane)
#define VITGAN_HIGH(lane) ((lane) & S) ? VL + (lane) : ((lane) ^ S)
#if defined(__clang__)
#define VITGAN_SHUFFLE(x, y, which) __builtin_shufflevector(x, y, VITGAN_EACH_LANE(which))
#else
#define VITGAN_SHUFFLE(x, y, which) __builtin_shuffle(x, y, (vi){VITGAN_EACH_LANE(which)})
#endif

template <int S>
INLINE void exchange(vf* r) {
  UNROLL
  for (int a = 0; a < VL; ++a) {
    if (a & S) continue;
    const vf x = r[a], y = r[a + S];
    r[a] = VITGAN_SHUFFLE(x, y, VITGAN_LOW);
    r[a + S] = VITGAN_SHUFFLE(x, y, VITGAN_HIGH);
  }
  if constexpr (2 * S < VL) exchange<2 * S>(r);
}
// lane a of r[0] becomes the sum of r[a]
template <int S>
INLINE void fold(vf* r) {
  UNROLL
  for (int a = 0; a < VL; a += 2 * S) {
    const vf x = r[a], y = r[a + S];
    r[a] = VITGAN_SHUFFLE(x, y, VITGAN_LOW) + VITGAN_SHUFFLE(x, y, VITGAN_HIGH);
  }
  if constexpr (2 * S < VL) fold<2 * S>(r);
}

// VL rows of VL floats each
INLINE void load_square(const float* x, Index ld, vf* r) {
  UNROLL
  for (int a = 0; a < VL; ++a) r[a] = load(x + a * ld);
}
INLINE void store_square(float* x, Index ld, const vf* r) {
  UNROLL
  for (int a = 0; a < VL; ++a) store(x + a * ld, r[a]);
}
INLINE vf row_sums(const float* x, Index ld) {
  vf r[VL];
  load_square(x, ld, r);
  fold<1>(r);
  return r[0];
}

// to (cols, n) = the transpose of from (n, cols)
INLINE void transpose(const float* from, Index n, Index cols, Index ld, float* to, Index ld_to) {
  for (Index i = 0; i < n; i += VL) {
    for (Index j = 0; j < cols; j += VL) {
      const Index rows = smaller(n - i, VL), width = smaller(cols - j, VL);
      if (rows == VL && width == VL) {
        vf r[VL];
        load_square(from + i * ld + j, ld, r);
        exchange<1>(r);
        store_square(to + j * ld_to + i, ld_to, r);
      } else {
        for (Index a = 0; a < rows; ++a) {
          for (Index b = 0; b < width; ++b) to[(j + b) * ld_to + i + a] = from[(i + a) * ld + j + b];
        }
      }
    }
  }
}

// --- 2^x for x up to 127: 0 below -127, not-a-number where x is that or infinity. Relative error 1e-7.

INLINE vf exp2(vf x) {
  const float magic = 12583039.f;  // 1.5 * 2^23 + 127: adding it leaves the exponent's bits of 2^(nearest whole number)
  x = x < -127.f ? splat(-127.f) : x;
  const vf shifted = x + magic;
  const vf r = x - (shifted - magic);
  vf p = 1.535336188319500e-4f * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.f;
  return p * (vf)((vi)shifted << 23);
}

INLINE vf root(vf x) {
  vf y;
  UNROLL
  for (int i = 0; i < VL; ++i) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
