// Sine and cosine of a vector of floats in radians, error below 2 units in the last place for any finite argument;
// infinities and not-a-number give not-a-number.
//
// Up to 30000 the argument is reduced by the nearest multiple of pi/2 (Cody and Waite, 1980): with fused products in
// three parts of 24 bits, without them in double, where the multiple of the first part is exact. Beyond, the C library.
#pragma once

#include "simd.h"

namespace vitgan {
namespace VITGAN_LEVEL {

constexpr float kFar = 30000.f;

// x - multiple * pi/2
INLINE vf reduced(vf x, vf multiple) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  vf r = x - multiple * 1.57079637050628662109375f;
  r = r + multiple * 4.37113900018624283e-8f;
  return r + multiple * 1.71512449e-15f;
#else
  typedef double vd __attribute__((vector_size(VL * 8)));
  const vd m = __builtin_convertvector(multiple, vd);
  const vd r = (__builtin_convertvector(x, vd) - m * 1.57079632673412561417e+00) - m * 6.07710050650619224932e-11;
  return __builtin_convertvector(r, vf);
#endif
}

// Right below kFar; beyond, `far` gets a lane that is not 0.
INLINE void sine_and_cosine(vf x, vf* sine, vf* cosine, vi* far) {
  *far |= magnitude(x) > kFar;
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest whole number in the low bits
  const vf shifted = x * 0.636619772367581f + magic;
  const vi quadrant = bits_as_int(shifted);
  const vf r = reduced(x, shifted - magic), z = r * r;
  const vf s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
  const vf c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.f;
  const vi odd = -(quadrant & 1);
  *sine = bits_as_float(bits_as_int(odd ? c : s) ^ ((quadrant & 2) << 30));
  *cosine = bits_as_float(bits_as_int(odd ? s : c) ^ (((quadrant + 1) & 2) << 30));
}

static __attribute__((noinline)) void sine_and_cosine_of_far(vf x, vf* sine, vf* cosine) {
  float lanes[VL], sines[VL], cosines[VL];
  store(lanes, x);
  for (int i = 0; i < VL; ++i) {
    sines[i] = __builtin_sinf(lanes[i]);
    cosines[i] = __builtin_cosf(lanes[i]);
  }
  *sine = load(sines);
  *cosine = load(cosines);
}

INLINE bool any(vi mask) {
  int lanes[VL], found = 0;
  __builtin_memcpy(lanes, &mask, sizeof lanes);
  for (int i = 0; i < VL; ++i) found |= lanes[i];
  return found != 0;
}

// use(j, sine, cosine) for each vector of a row of n arguments, argument(j) being that at j. A row with an argument
// beyond kFar is gone through twice, so `use` must not change what `argument` reads.
template <typename Argument, typename Use>
INLINE void for_each_sine(Index n, const Argument& argument, const Use& use) {
  vi far = {};
  for (Index j = 0; j < n; j += VL) {
    vf sine, cosine;
    sine_and_cosine(argument(j), &sine, &cosine, &far);
    use(j, sine, cosine);
  }
  if (__builtin_expect(any(far), 0)) {
    for (Index j = 0; j < n; j += VL) {
      vf sine, cosine;
      sine_and_cosine_of_far(argument(j), &sine, &cosine);
      use(j, sine, cosine);
    }
  }
}

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
