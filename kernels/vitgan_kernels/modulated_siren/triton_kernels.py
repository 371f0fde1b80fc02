# mypy: allow-untyped-defs, allow-incomplete-defs, disable-error-code=assignment
"""Triton kernels of the modulated SIREN: shapes, strides and arithmetic. `launch.py` calls them.

A layer is q = scale * (x * style) W^T + bias, and sin(omega * q) or q. x is (B, P, I) or (P, I), W (O, I), style
(B, I), scale (B, O) (the demodulation, or None), bias (O,) or None; all contiguous. c is the product alone, and
u = x * style.

Rows are the points of all samples. A tile has SAMPLES * POINTS of them, POINTS of each sample, so that a sum over a
sample's points is a sum inside a tile; tiles are counted along a sample first. Products are accumulated in float32, and
the argument of the sine is never anything else. Sums across tiles are left to the caller as partial sums in float32:
no atomics, and results that repeat bit for bit.

Floor of each kernel, in bytes (e of them an element, n = B * P rows) and operations:
    layer_forward    e (n I + n O + O I + B I)       2 n I O      (x shared: e P I instead of e n I)
    network*_forward e (n I_0 + n O_last + ...)      2 n (I_0 O_0 + O_0 O_1 + ...): no hidden layer is read or written
    layer_backward   e (n I + 2 n O + O I + B I)     2 n I O      (the recomputed product)
    head_backward    e (n I + n O_last + n O + ...)  2 n (I O + 2 O O_last)
    input_backward   e (n O + 2 n I + O I)           2 n I O
    weight_backward  e (n O + n I) + 4 S O I         2 n I O      (S partial sums)
"""

import triton
import triton.language as tl

from vitgan_kernels import triton_support
from vitgan_kernels.modulated_siren.sine import cosine, sine

INTERPRETED = tl.constexpr(triton_support.INTERPRETED)


@triton.jit
def layer_forward(
    X, W, STYLE, SCALE, BIAS, Y, omega, batch, points, inputs, outputs,
    SHARED: tl.constexpr, SINE: tl.constexpr, PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """y = sin(omega * q), or q. One program a row tile and COLUMNS outputs; those of one row tile are neighbours."""
    column_tiles = tl.cdiv(outputs, COLUMNS)
    sample, point, valid = _rows(tl.program_id(0) // column_tiles, batch, points, SAMPLES, POINTS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    x_row = _x_row(sample, point, points, SHARED)
    c = _product(X, W, STYLE, x_row, sample, valid, n, inputs, outputs, PRECISION, DEPTH)
    y = _pre_activation(c, SCALE, BIAS, sample, valid, n, outputs)
    if SINE:
        y = sine(omega * y)
    _store(Y, sample.to(tl.int64) * points + point, valid, n, outputs, y)


@triton.jit
def network2_forward(
    X, W0, STYLE0, SCALE0, BIAS0, W1, STYLE1, SCALE1, BIAS1, Y, omega, batch, points, inputs, width, outputs,
    SHARED: tl.constexpr, SINE: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """A hidden layer and a head of at most HEAD outputs. One program a row tile; COLUMNS hidden units at a time."""
    sample, point, valid = _rows(tl.program_id(0), batch, points, SAMPLES, POINTS)
    x_row = _x_row(sample, point, points, SHARED)
    head = tl.arange(0, HEAD)
    c1 = tl.zeros((SAMPLES * POINTS, HEAD), tl.float32)
    for start in range(0, width, COLUMNS):
        n = start + tl.arange(0, COLUMNS)
        c0 = _product(X, W0, STYLE0, x_row, sample, valid, n, inputs, width, PRECISION, DEPTH)
        h = sine(omega * _pre_activation(c0, SCALE0, BIAS0, sample, valid, n, width))
        u = _modulated(h, STYLE1, sample, valid, n, width).to(X.dtype.element_ty)
        c1 = _dot(u, _transposed(W1, head, n, outputs, width), c1, PRECISION)
    y = _pre_activation(c1, SCALE1, BIAS1, sample, valid, head, outputs)
    if SINE:
        y = sine(omega * y)
    _store(Y, sample.to(tl.int64) * points + point, valid, head, outputs, y)


@triton.jit
def network3_forward(
    X, W0, STYLE0, SCALE0, BIAS0, W1, STYLE1, SCALE1, BIAS1, W2, STYLE2, SCALE2, BIAS2, Y,
    omega, batch, points, inputs, width0, width1, outputs,
    SHARED: tl.constexpr, SINE: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr, BLOCKS: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    """Two hidden layers and a head. One program a row tile.

    HIDDEN units of the first layer at a time are computed, bent and multiplied into all of the second layer, whose
    BLOCKS * COLUMNS sums stay in registers: no unit is computed twice.
    """
    sample, point, valid = _rows(tl.program_id(0), batch, points, SAMPLES, POINTS)
    x_row = _x_row(sample, point, points, SHARED)
    column = tl.arange(0, COLUMNS)
    sums = ()
    for _ in tl.static_range(BLOCKS):
        sums = sums + (tl.zeros((SAMPLES * POINTS, COLUMNS), tl.float32),)  # noqa: RUF005 Triton's tuples
    for start in range(0, width0, HIDDEN):
        n = start + tl.arange(0, HIDDEN)
        c0 = _product(X, W0, STYLE0, x_row, sample, valid, n, inputs, width0, PRECISION, DEPTH)
        h = sine(omega * _pre_activation(c0, SCALE0, BIAS0, sample, valid, n, width0))
        u = _modulated(h, STYLE1, sample, valid, n, width0).to(X.dtype.element_ty)
        new = ()
        for block in tl.static_range(BLOCKS):
            w1 = _transposed(W1, block * COLUMNS + column, n, width1, width0)
            new = new + (_dot(u, w1, sums[block], PRECISION),)  # noqa: RUF005
        sums = new
    head = tl.arange(0, HEAD)
    c2 = tl.zeros((SAMPLES * POINTS, HEAD), tl.float32)
    for block in tl.static_range(BLOCKS):
        n = block * COLUMNS + column
        h = sine(omega * _pre_activation(sums[block], SCALE1, BIAS1, sample, valid, n, width1))
        u = _modulated(h, STYLE2, sample, valid, n, width1).to(X.dtype.element_ty)
        c2 = _dot(u, _transposed(W2, head, n, outputs, width1), c2, PRECISION)
    y = _pre_activation(c2, SCALE2, BIAS2, sample, valid, head, outputs)
    if SINE:
        y = sine(omega * y)
    _store(Y, sample.to(tl.int64) * points + point, valid, head, outputs, y)


@triton.jit
def layer_backward(
    DY, X, W, STYLE, SCALE, BIAS, DC, DSCALE, DBIAS, omega, batch, points, inputs, outputs,
    SHARED: tl.constexpr, SINE: tl.constexpr, PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From dy the gradient dc of the product, which is recomputed. Programs as in `layer_forward`.

    Partial sums: DSCALE (B, point tiles, O) and DBIAS (row tiles, O), or None.
    """
    column_tiles = tl.cdiv(outputs, COLUMNS)
    tile = tl.program_id(0) // column_tiles
    sample, point, valid = _rows(tile, batch, points, SAMPLES, POINTS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    x_row = _x_row(sample, point, points, SHARED)
    row = sample.to(tl.int64) * points + point
    c = _product(X, W, STYLE, x_row, sample, valid, n, inputs, outputs, PRECISION, DEPTH)
    dq = _load(DY, row, valid, n, outputs).to(tl.float32)
    if SINE:
        dq = dq * omega * cosine(omega * _pre_activation(c, SCALE, BIAS, sample, valid, n, outputs))
    _finish_backward(dq, c, SCALE, DC, DSCALE, DBIAS, tile, row, sample, valid, n, batch, points, outputs,
                     SAMPLES, POINTS)  # fmt: skip


@triton.jit
def head_backward(
    DY, X, W0, STYLE0, SCALE0, BIAS0, W1, STYLE1, DC, DSCALE, DBIAS, DW1, DSTYLE1,
    omega, batch, points, inputs, width, outputs,
    SHARED: tl.constexpr, PRECISION: tl.constexpr, HEAD: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """`layer_backward` of a sine layer under a linear head (no scale, no sine): its activations are never stored.

    DY is the gradient of the head's output. More partial sums: DW1 (row tiles, outputs, width) and DSTYLE1 (B, point
    tiles, width).
    """
    column_tiles = tl.cdiv(width, COLUMNS)
    tile = tl.program_id(0) // column_tiles
    sample, point, valid = _rows(tile, batch, points, SAMPLES, POINTS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    x_row = _x_row(sample, point, points, SHARED)
    row = sample.to(tl.int64) * points + point
    head = tl.arange(0, HEAD)
    c = _product(X, W0, STYLE0, x_row, sample, valid, n, inputs, width, PRECISION, DEPTH)
    z = omega * _pre_activation(c, SCALE0, BIAS0, sample, valid, n, width)
    dy = _load(DY, row, valid, head, outputs)
    style1 = _load(STYLE1, sample, valid, n, width).to(tl.float32)
    h = sine(z)
    dw1 = tl.zeros((HEAD, COLUMNS), tl.float32)
    dw1 = _dot(tl.trans(dy), (h * style1).to(dy.dtype), dw1, PRECISION)
    _store(DW1, tile.to(tl.int64) * outputs + head, head < outputs, n, width, dw1)
    du = tl.zeros((SAMPLES * POINTS, COLUMNS), tl.float32)
    du = _dot(dy, _load(W1, head, head < outputs, n, width), du, PRECISION)
    _store_sums_of_samples(DSTYLE1, du * h, tile, n, batch, points, width, SAMPLES, POINTS)
    dq = du * style1 * omega * cosine(z)
    _finish_backward(dq, c, SCALE0, DC, DSCALE, DBIAS, tile, row, sample, valid, n, batch, points, width,
                     SAMPLES, POINTS)  # fmt: skip


@triton.jit
def input_backward(
    DC, X, W, STYLE, DX, DSTYLE, groups, batch, points, inputs, outputs,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """From dc the gradients of x and style. One program COLUMNS inputs, a point tile and `groups` groups of SAMPLES.

    Partial sums: DSTYLE (B, point tiles, I), or None. DX is None, or (B, P, I), or for a shared x partial sums
    (programs along the samples, P, I).
    """
    column_tiles, point_tiles = tl.cdiv(inputs, COLUMNS), tl.cdiv(points, POINTS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    rest = tl.program_id(0) // column_tiles
    point_tile, part = rest % point_tiles, rest // point_tiles
    total = tl.zeros((POINTS, COLUMNS), tl.float32)
    for group in range(part * groups, tl.minimum((part + 1) * groups, tl.cdiv(batch, SAMPLES))):
        tile = group * point_tiles + point_tile
        sample, point, valid = _rows(tile, batch, points, SAMPLES, POINTS)
        row = sample.to(tl.int64) * points + point
        du = tl.zeros((SAMPLES * POINTS, COLUMNS), tl.float32)
        for start in range(0, outputs, DEPTH):
            k = start + tl.arange(0, DEPTH)
            dc = _load(DC, row, valid, k, outputs)
            du = _dot(dc, _load(W, k, k < outputs, n, inputs), du, PRECISION)
        if DSTYLE is not None:
            x = _load(X, _x_row(sample, point, points, SHARED), valid, n, inputs).to(tl.float32)
            _store_sums_of_samples(DSTYLE, du * x, tile, n, batch, points, inputs, SAMPLES, POINTS)
            tl.debug_barrier()  # DX may be X's own memory: each thread has read before any writes
        if DX is not None:
            dx = _modulated(du, STYLE, sample, valid, n, inputs)
            if SHARED:
                total += tl.sum(tl.reshape(dx, (SAMPLES, POINTS, COLUMNS)), 0)
            else:
                _store(DX, row, valid, n, inputs, dx)
    if DX is not None:  # noqa: SIM102 Triton needs the nested form: the first is decided when compiling
        if SHARED:
            point = point_tile * POINTS + tl.arange(0, POINTS)
            _store(DX, part.to(tl.int64) * points + point, point < points, n, inputs, total)


@triton.jit
def weight_backward(
    DC, X, STYLE, DW, tiles, batch, points, inputs, outputs,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    """Partial sums DW (S, O, I) of the weight's gradient, each over `tiles` row tiles; OUTPUTS by COLUMNS a program."""
    column_tiles, output_tiles = tl.cdiv(inputs, COLUMNS), tl.cdiv(outputs, OUTPUTS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    rest = tl.program_id(0) // column_tiles
    o = rest % output_tiles * OUTPUTS + tl.arange(0, OUTPUTS)
    part = rest // output_tiles
    all_tiles = tl.cdiv(batch, SAMPLES) * tl.cdiv(points, POINTS)
    dw = tl.zeros((OUTPUTS, COLUMNS), tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, all_tiles)):
        sample, point, valid = _rows(tile, batch, points, SAMPLES, POINTS)
        dc = _load(DC, sample.to(tl.int64) * points + point, valid, o, outputs)
        u = _operand(X, STYLE, _x_row(sample, point, points, SHARED), sample, valid, n, inputs)
        dw = _dot(tl.trans(dc), u, dw, PRECISION)
    _store(DW, part.to(tl.int64) * outputs + o, o < outputs, n, inputs, dw)


@triton.jit
def _rows(tile, batch, points, SAMPLES: tl.constexpr, POINTS: tl.constexpr):
    """Sample and point of each row of a tile, and whether there are such."""
    point_tiles = tl.cdiv(points, POINTS)
    row = tl.arange(0, SAMPLES * POINTS)
    sample = tile // point_tiles * SAMPLES + row // POINTS
    point = tile % point_tiles * POINTS + row % POINTS
    return sample, point, (sample < batch) & (point < points)


@triton.jit
def _x_row(sample, point, points, SHARED: tl.constexpr):
    """The row of x, of which there are P if it is shared."""
    return point.to(tl.int64) if SHARED else sample.to(tl.int64) * points + point


@triton.jit
def _load(POINTER, row, valid, n, columns):
    """Rows by columns of a row-major matrix; 0 outside it."""
    mask = valid[:, None] & (n < columns)[None, :]
    return tl.load(POINTER + row.to(tl.int64)[:, None] * columns + n[None, :], mask=mask, other=0.0)


@triton.jit
def _store(POINTER, row, valid, n, columns, value):
    mask = valid[:, None] & (n < columns)[None, :]
    tl.store(POINTER + row.to(tl.int64)[:, None] * columns + n[None, :], value.to(POINTER.dtype.element_ty), mask=mask)


@triton.jit
def _transposed(W, n, k, outputs, inputs):
    """W[n, k] as the right operand (k, n) of a product."""
    mask = (n < outputs)[None, :] & (k < inputs)[:, None]
    return tl.load(W + n.to(tl.int64)[None, :] * inputs + k[:, None], mask=mask, other=0.0)


@triton.jit
def _operand(X, STYLE, x_row, sample, valid, k, inputs):
    """u = x * style as the left operand of a product: one rounding to the dtype of x."""
    x = _load(X, x_row, valid, k, inputs)
    style = _load(STYLE, sample, valid, k, inputs)
    if INTERPRETED:
        return (x.to(tl.float32) * style.to(tl.float32)).to(x.dtype)
    return x * style


@triton.jit
def _modulated(value, STYLE, sample, valid, n, columns):
    return value * _load(STYLE, sample, valid, n, columns).to(tl.float32)


@triton.jit
def _dot(a, b, c, PRECISION: tl.constexpr):
    if INTERPRETED:  # whose bfloat16 products are wrong
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, c, input_precision=PRECISION)


@triton.jit
def _product(X, W, STYLE, x_row, sample, valid, n, inputs, outputs, PRECISION: tl.constexpr, DEPTH: tl.constexpr):
    """c = (x * style) W^T for a tile of rows and the outputs n."""
    c = tl.zeros((x_row.shape[0], n.shape[0]), tl.float32)
    for start in range(0, inputs, DEPTH):
        k = start + tl.arange(0, DEPTH)
        u = _operand(X, STYLE, x_row, sample, valid, k, inputs)
        c = _dot(u, _transposed(W, n, k, outputs, inputs), c, PRECISION)
    return c


@triton.jit
def _pre_activation(c, SCALE, BIAS, sample, valid, n, outputs):
    """q = scale * c + bias."""
    if SCALE is not None:
        c = c * _load(SCALE, sample, valid, n, outputs)
    if BIAS is not None:
        c = c + tl.load(BIAS + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    return c


@triton.jit
def _finish_backward(
    dq, c, SCALE, DC, DSCALE, DBIAS, tile, row, sample, valid, n, batch, points, outputs,
    SAMPLES: tl.constexpr, POINTS: tl.constexpr,
):  # fmt: skip
    """From the gradient dq of the pre-activation those of its parts; dq is 0 in rows outside."""
    if DBIAS is not None:
        tl.store(DBIAS + tile.to(tl.int64) * outputs + n, tl.sum(dq, 0), mask=n < outputs)
    if DSCALE is not None:
        _store_sums_of_samples(DSCALE, dq * c, tile, n, batch, points, outputs, SAMPLES, POINTS)
    if SCALE is not None:
        dq = dq * _load(SCALE, sample, valid, n, outputs)
    _store(DC, row, valid, n, outputs, dq)


@triton.jit
def _store_sums_of_samples(
    OUT, value, tile, n, batch, points, columns, SAMPLES: tl.constexpr, POINTS: tl.constexpr
):  # fmt: skip
    """OUT[sample, point tile, n] = the sum of a row tile's value over the points of each sample."""
    point_tiles = tl.cdiv(points, POINTS)
    sample = tile // point_tiles * SAMPLES + tl.arange(0, SAMPLES)
    sums = tl.sum(tl.reshape(value, (SAMPLES, POINTS, value.shape[1])), 1)
    _store(OUT, sample.to(tl.int64) * point_tiles + tile % point_tiles, sample < batch, n, columns, sums)
