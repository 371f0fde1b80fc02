# mypy: allow-untyped-defs, allow-incomplete-defs
"""Sine and cosine of a float32 argument in radians, for Triton kernels: short, branchless, the same on every target.

`tl.sin` takes a slow path through local memory on NVIDIA GPUs, and the hardware's own approximation is to be had by
inline assembly only. Here the argument is reduced by multiples of pi (Cody and Waite, 1980), in three parts of pi of
which the first two have so few bits that their products with the multiple are exact, and a polynomial of degree 9,
fitted for the least largest error (1.4e-8 with its float32 coefficients) on [-pi/2, pi/2], does the rest: about 16
operations.

The error is below 2e-7 for |z| <= 10000 and below 1e-6 for |z| <= 100000. Beyond, it grows until the value means
nothing (and float32 arguments are themselves that coarse: 0.06 apart at 1e6), but the value never leaves [-1, 1].
Infinite and NaN arguments give NaN.
"""

import triton
import triton.language as tl

ONE_OVER_PI = tl.constexpr(0.3183098861837907)
# pi = 3.140625 (8 bits) + the next 11 bits + the rest
PI_HIGH = tl.constexpr(3.140625)
PI_MIDDLE = tl.constexpr(9.67502593994140625e-4)
PI_LOW = tl.constexpr(1.5099579909783764e-07)
# Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits of the sum.
ROUND = tl.constexpr(12582912.0)


@triton.jit
def sine(z):
    """sin(z)."""
    shifted = tl.fma(z, ONE_OVER_PI, ROUND)
    return _sine_of_remainder(z, shifted - ROUND, shifted)


@triton.jit
def cosine(z):
    """cos(z), the sine of z + pi/2: its multiples of pi are halves."""
    shifted = tl.fma(z, ONE_OVER_PI, 0.5) + ROUND
    return _sine_of_remainder(z, (shifted - ROUND) - 0.5, shifted)


@triton.jit
def _sine_of_remainder(z, multiple, shifted):
    """The sine of z - multiple * pi, with its sign changed where the integer in the low bits of `shifted` is odd."""
    r = tl.fma(multiple, -PI_HIGH, z)
    r = tl.fma(multiple, -PI_MIDDLE, r)
    r = tl.fma(multiple, -PI_LOW, r)
    square = r * r
    series = tl.fma(square, 2.5997517e-06, -1.9806479e-04)
    series = tl.fma(square, series, 8.3330153e-03)
    series = tl.fma(square, series, -1.6666657e-01)
    value = tl.fma(r * square, series, r)
    odd = shifted.to(tl.int32, bitcast=True) << 31
    value = (value.to(tl.int32, bitcast=True) ^ odd).to(tl.float32, bitcast=True)
    return tl.clamp(value, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
