// bfloat16 as CUDA rounds it: to the nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

class __nv_bfloat16 {
 public:
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits_ = static_cast<std::uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  }
  operator float() const {
    const std::uint32_t bits = static_cast<std::uint32_t>(bits_) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
  }

 private:
  std::uint16_t bits_;
};
