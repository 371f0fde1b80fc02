// float16 as CUDA rounds it: to the nearest, ties to even (nearbyint does, as programs start).
#pragma once

#include <cmath>
#include <cstdint>

class __half {
 public:
  __half() = default;
  explicit __half(float x) {
    const float size = std::fabs(x);
    std::uint16_t bits;
    if (x != x) {
      bits = 0x7fff;
    } else if (size >= 65520.f) {
      bits = 0x7c00;
    } else if (size < std::ldexp(1.f, -14)) {
      bits = static_cast<std::uint16_t>(std::nearbyint(std::ldexp(size, 24)));
    } else {
      int exponent;
      const float fraction = std::frexp(size, &exponent);
      bits = static_cast<std::uint16_t>(((exponent + 13) << 10) + std::nearbyint(std::ldexp(fraction, 11)));
    }
    bits_ = static_cast<std::uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0));
  }
  operator float() const {
    const int exponent = bits_ >> 10 & 31, fraction = bits_ & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                       : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return bits_ & 0x8000 ? -size : size;
  }

 private:
  std::uint16_t bits_;
};
