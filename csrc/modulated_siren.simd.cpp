// What modulated_siren.h says, at one level: units of rows through all layers, and what is left to do after them.
#include "modulated_siren_products.h"
#include "sine.h"

namespace vitgan {
namespace VITGAN_LEVEL {

namespace {

struct Unit {
  Index sample, samples, point, points;

  Unit(const SirenPlan& plan, Index index) {
    const Siren& call = *plan.call;
    if (plan.parts == 1) {
      sample = index * plan.samples;
      samples = smaller(plan.samples, call.batch - sample);
      point = 0;
      points = call.points;
    } else {  // samples one after the other in each part, so that a shared x is read from cache
      const Index part = index / call.batch;
      sample = index % call.batch;
      samples = 1;
      point = part * call.points / plan.parts;
      points = (part + 1) * call.points / plan.parts - point;
    }
  }
  Index rows() const { return samples * points; }
  Index row(const Siren& call) const { return sample * call.points + point; }
};

Index widest_of(const Siren& call) {
  Index widest = call.layers[0].inputs;
  for (Index l = 0; l < call.depth; ++l) widest = larger(widest, call.layers[l].outputs);
  return widest;
}

// What one thread needs for a unit at a time. Rows of floats are wide(width) apart.
template <typename Products>
struct Workspace {
  Products products;
  typename Products::Operand* U;         // what a weight multiplies
  float *line, *style, *scale, *part;    // one row
  float** C;                             // for each layer, U W^T
  float *Y, *D, *E, *G;                  // backward: the input of a layer, gradients, slopes of the sines

  Workspace(Arena& arena, const Siren& call, bool backward) : products(arena, widest_of(call)) {
    const Index widest = wide(widest_of(call)), square = Products::kRows * widest;
    U = arena.take<typename Products::Operand>(Products::operand_size(widest));
    line = arena.take<float>(widest);
    style = arena.take<float>(widest);
    scale = arena.take<float>(widest);
    part = arena.take<float>(widest);
    C = arena.take<float*>(call.depth);
    float* const shared = backward ? nullptr : arena.take<float>(square);
    for (Index l = 0; l < call.depth; ++l) {
      const SirenLayer& y = call.layers[l];
      float* const own = backward && !y.products ? arena.take<float>(Products::kRows * wide(y.outputs)) : shared;
      if (C) C[l] = own;
    }
    if (!backward) return;
    Y = arena.take<float>(square);
    D = arena.take<float>(square);
    E = arena.take<float>(square);
    G = arena.take<float>(square);
  }
};

// U = x * style, of the first layer
template <typename Products>
void first_operand(const SirenPlan& plan, const Unit& unit, Workspace<Products>& w) {
  const Siren& call = *plan.call;
  const Index I = call.layers[0].inputs, stride = Products::stride(I);
  typename Products::Operand* u = w.U;
  for (Index b = 0; b < unit.samples; ++b) {
    read_row(call.layers[0].style, call.bf16, (unit.sample + b) * I, I, w.style);
    for (Index i = 0; i < unit.points; ++i, u += stride) {
      const float* x = plan.shared_x + (unit.point + i) * wide(I);
      if (!plan.shared_x) {
        read_row(call.x, call.bf16, ((unit.sample + b) * call.points + unit.point + i) * I, I, w.line);
        x = w.line;
      }
      for (Index j = 0; j < up(I); j += VL) w.products.put(u + j, I, load(x + j) * load(w.style + j));
      w.products.end_row(u, I);
    }
  }
  w.products.end_rows(w.U, unit.rows(), I);
}

// Products of layer l for a unit: where they are kept, or else in the workspace.
template <typename Products>
float* products_of(const SirenPlan& plan, const Unit& unit, Index l, const Workspace<Products>& w) {
  const SirenLayer& y = plan.call->layers[l];
  return y.products ? y.products + unit.row(*plan.call) * wide(y.outputs) : w.C[l];
}

INLINE vf affine(const float* c, const float* scale, const float* bias, Index j) {
  return (scale ? load(c + j) * load(scale + j) : load(c + j)) + load(bias + j);
}

// The scale of a sample as a padded row; null where there is none.
template <typename Products>
const float* scale_of(const SirenLayer& y, Index sample, const Workspace<Products>& w) {
  if (!y.scale) return nullptr;
  read_row(y.scale, false, sample * y.outputs, y.outputs, w.scale);
  return w.scale;
}

// Through all layers, or only up to the products of the last.
template <typename Products>
void forward_unit(const SirenPlan& plan, const Unit& unit, Workspace<Products>& w, bool to_the_end) {
  const Siren& call = *plan.call;
  const vf omega = splat(call.omega);
  first_operand(plan, unit, w);
  for (Index l = 0; l < call.depth; ++l) {
    const SirenLayer& y = call.layers[l];
    const Index O = y.outputs, stride = Products::stride(O);
    const float* const bias = plan.layers[l].bias;
    const bool last = l + 1 == call.depth;
    if (last && !to_the_end && !call.needs_products(l)) return;
    float* const C = products_of(plan, unit, l, w);
    w.products.forward(unit.rows(), w.U, y.inputs, plan.layers[l].forward, O, C);
    if (last && !to_the_end) return;
    typename Products::Operand* u = w.U;
    const float* c = C;
    for (Index b = 0; b < unit.samples; ++b) {
      const Index sample = unit.sample + b;
      const float* const scale = scale_of(y, sample, w);
      if (!last) read_row(call.layers[l + 1].style, call.bf16, sample * O, O, w.style);
      for (Index i = 0; i < unit.points; ++i, c += wide(O), u += stride) {
        const auto argument = [&](Index j) { return omega * affine(c, scale, bias, j); };
        if (!last) {
          for_each_sine(O, argument, [&](Index j, vf sine, vf) { w.products.put(u + j, O, sine * load(w.style + j)); });
          w.products.end_row(u, O);
          continue;
        }
        if (call.sine) {
          for_each_sine(O, argument, [&](Index j, vf sine, vf) { store(w.line + j, sine); });
        } else {
          for (Index j = 0; j < O; j += VL) store(w.line + j, affine(c, scale, bias, j));
        }
        write_row(call.out, call.bf16, (sample * call.points + unit.point + i) * O, O, w.line);
      }
    }
    if (!last) w.products.end_rows(w.U, unit.rows(), O);
  }
}

// D = the gradient of the last layer's q
template <typename Products>
void last_gradient(const SirenPlan& plan, const Unit& unit, Workspace<Products>& w) {
  const Siren& call = *plan.call;
  const Index l = call.depth - 1, O = call.layers[l].outputs;
  const vf omega = splat(call.omega);
  const float* c = products_of(plan, unit, l, w);
  float* d = w.D;
  for (Index b = 0; b < unit.samples; ++b) {
    const Index sample = unit.sample + b;
    const float* const scale = call.sine ? scale_of(call.layers[l], sample, w) : nullptr;
    for (Index i = 0; i < unit.points; ++i, c += wide(O), d += wide(O)) {
      float* const grad = call.sine ? w.line : d;
      read_row(call.grad, call.bf16, (sample * call.points + unit.point + i) * O, O, grad);
      if (!call.sine) continue;
      for_each_sine(O, [&](Index j) { return omega * affine(c, scale, plan.layers[l].bias, j); },
                    [&](Index j, vf, vf cosine) { store(d + j, load(grad + j) * (omega * cosine)); });
    }
  }
}

// The gradients of bias and scale; D becomes that of the product.
template <typename Products>
void through_affine(const SirenPlan& plan, const Unit& unit, Index index, Index l, Workspace<Products>& w,
                    float* bias_sum, bool add) {
  const SirenLayer& y = plan.call->layers[l];
  const Index O = y.outputs;
  const float* c = products_of(plan, unit, l, w);
  float* d = w.D;
  for (Index j = 0; bias_sum && j < O; j += VL) {  // what an addition rounds off is added to the next one (Kahan, 1965)
    vf sum = add ? load(bias_sum + j) : (vf){}, rest = add ? load(bias_sum + wide(O) + j) : (vf){};
    for (Index row = 0; row < unit.rows(); ++row) {
      const vf more = load(d + row * wide(O) + j) + rest, total = sum + more;
      rest = more - (total - sum);
      sum = total;
    }
    store(bias_sum + j, sum);
    store(bias_sum + wide(O) + j, rest);
  }
  for (Index b = 0; y.scale && b < unit.samples; ++b, c += unit.points * wide(O), d += unit.points * wide(O)) {
    const float* const scale = scale_of(y, unit.sample + b, w);
    float* const slot = plan.layers[l].slot_scale + (plan.parts == 1 ? unit.sample + b : index) * wide(O);
    for (Index j = 0; j < O; j += VL) {
      vf total = {};
      for (Index i = 0; i < unit.points; ++i) {
        float* const at = d + i * wide(O) + j;
        total += load(at) * load(c + i * wide(O) + j);
        store(at, load(at) * load(scale + j));
      }
      store(slot + j, total);
    }
  }
}

// From the products below layer l: U, the layer's input Y, and E, its style times the slope of the sine before it
template <typename Products>
void inner_operand(const SirenPlan& plan, const Unit& unit, Index l, Workspace<Products>& w) {
  const Siren& call = *plan.call;
  const SirenLayer& below = call.layers[l - 1];
  const Index I = below.outputs;
  const vf omega = splat(call.omega);
  const float* const bias = plan.layers[l - 1].bias;
  const float* c = products_of(plan, unit, l - 1, w);
  typename Products::Operand* u = w.U;
  Index at = 0;
  for (Index b = 0; b < unit.samples; ++b) {
    const float* const scale = scale_of(below, unit.sample + b, w);
    read_row(call.layers[l].style, call.bf16, (unit.sample + b) * I, I, w.style);
    for (Index i = 0; i < unit.points; ++i, c += wide(I), u += Products::stride(I), at += wide(I)) {
      for_each_sine(I, [&](Index j) { return omega * affine(c, scale, bias, j); },
                    [&](Index j, vf sine, vf cosine) {
                      const vf style = load(w.style + j);
                      w.products.put(u + j, I, sine * style);
                      store(w.Y + at + j, sine);
                      store(w.E + at + j, omega * cosine * style);
                    });
      w.products.end_row(u, I);
    }
  }
  w.products.end_rows(w.U, unit.rows(), I);
}

// From G, the gradient of what the weight of layer l multiplied: that of its style, and D, of the q below
template <typename Products>
void through_style(const SirenPlan& plan, const Unit& unit, Index index, Index l, Workspace<Products>& w) {
  const SirenLayer& y = plan.call->layers[l];
  const Index I = y.inputs, size = unit.points * wide(I);
  for (Index b = 0; b < unit.samples; ++b) {
    float* const slot = plan.layers[l].slot_style;
    float* const to = slot ? slot + (plan.parts == 1 ? unit.sample + b : index) * wide(I) : w.part;
    for (Index j = 0; j < I; j += VL) {
      vf total = {};
      for (Index at = b * size + j; at < (b + 1) * size; at += wide(I)) {
        const vf g = load(w.G + at);
        total += g * load(w.Y + at);
        store(w.D + at, g * load(w.E + at));
      }
      store(to + j, total);
    }
  }
}

// The same of the first layer, whose input is x; a shared one's gradient is added to `x_sum`.
template <typename Products>
void through_first_style(const SirenPlan& plan, const Unit& unit, Index index, Workspace<Products>& w, float* x_sum) {
  const Siren& call = *plan.call;
  const SirenLayer& y = call.layers[0];
  const Index I = y.inputs;
  float* const slots = plan.layers[0].slot_style;
  const float* g = w.G;
  for (Index b = 0; b < unit.samples; ++b) {
    read_row(y.style, call.bf16, (unit.sample + b) * I, I, w.style);
    float* const slot = slots ? slots + (plan.parts == 1 ? unit.sample + b : index) * wide(I) : nullptr;
    if (slot) fill(slot, 0, up(I));
    for (Index i = 0; i < unit.points; ++i, g += wide(I)) {
      const Index row = (unit.sample + b) * call.points + unit.point + i;
      if (slot) {
        const float* x = plan.shared_x + (unit.point + i) * wide(I);
        if (!plan.shared_x) {
          read_row(call.x, call.bf16, row * I, I, w.line);
          x = w.line;
        }
        for (Index j = 0; j < I; j += VL) store(slot + j, load(slot + j) + load(g + j) * load(x + j));
      }
      if (call.grad_x && !call.shared) {
        for (Index j = 0; j < I; j += VL) store(w.line + j, load(g + j) * load(w.style + j));
        write_row(call.grad_x, call.bf16, row * I, I, w.line);
      } else if (call.grad_x) {  // the sum over the unit's samples first, so that no sum is long
        float* const part = w.Y + i * wide(I);
        for (Index j = 0; j < I; j += VL) {
          const vf more = load(g + j) * load(w.style + j);
          store(part + j, b ? load(part + j) + more : more);
        }
      }
    }
  }
  if (!call.grad_x || !call.shared) return;
  for (Index i = 0; i < unit.points; ++i) {
    float* const to = x_sum + (unit.point + i) * wide(I);
    for (Index j = 0; j < I; j += VL) store(to + j, load(to + j) + load(w.Y + i * wide(I) + j));
  }
}

template <typename Products>
void backward_unit(const SirenPlan& plan, Index index, Workspace<Products>& w, const SirenSums& sums, bool add) {
  const Siren& call = *plan.call;
  const Unit unit(plan, index);
  if (!call.kept()) forward_unit(plan, unit, w, false);
  last_gradient(plan, unit, w);
  for (Index l = call.depth - 1; l >= 0; --l) {
    const SirenLayer& y = call.layers[l];
    through_affine(plan, unit, index, l, w, sums.biases[l], add);
    if (l > 0) inner_operand(plan, unit, l, w);
    else if (sums.weights[0]) first_operand(plan, unit, w);
    if (sums.weights[l]) w.products.weight_gradient(unit.rows(), w.D, y.outputs, w.U, y.inputs, sums.weights[l], add);
    if (l == 0 && !call.grad_x && !plan.layers[0].slot_style) return;
    w.products.input_gradient(unit.rows(), w.D, y.outputs, plan.layers[l].backward, y.inputs, w.G);
    if (l > 0) through_style(plan, unit, index, l, w);
    else through_first_style(plan, unit, index, w, sums.x);
  }
}

template <typename Products>
size_t run_units(const SirenPlan& plan, Index first, Index last, const SirenSums* sums, bool backward, void* memory) {
  Arena arena{(char*)memory};
  Workspace<Products> w(arena, *plan.call, backward);
  if (!memory) return arena.used;
  for (Index u = first; u < last; ++u) {
    if (backward) backward_unit(plan, u, w, *sums, u > first);
    else forward_unit(plan, Unit(plan, u), w, true);
  }
  return arena.used;
}

// The power of two by which the styles of a sample are divided before they are squared, so that no square of a finite
// one overflows.
float unit_of(const float* style, Index I) {
  float most = 1;
  for (Index j = 0; j < I; ++j) {
    const float a = __builtin_fabsf(style[j]);
    most = a > most ? a : most;
  }
  if (most > 0x1p126f) return 0x1p126f;
  union { float value; unsigned bits; } word = {most};
  word.bits &= 0x7f800000u;
  return word.value;
}

// styles / unit, squared, of samples first..last; the units
void square_styles(const Siren& call, Index l, Index first, Index last, float* squares, float* units) {
  const Index I = call.layers[l].inputs;
  for (Index b = first; b < last; ++b, squares += wide(I)) {
    read_row(call.layers[l].style, call.bf16, b * I, I, squares);
    const float unit = units[b - first] = unit_of(squares, I), inverse = 1 / unit;
    for (Index j = 0; j < I; j += VL) {
      const vf s = load(squares + j) * inverse;
      store(squares + j, s * s);
    }
  }
}

size_t demodulate(const SirenPlan& plan, Index l, Index first, Index last, void* memory) {
  const Siren& call = *plan.call;
  const SirenLayer& y = call.layers[l];
  const Index O = y.outputs, I = y.inputs;
  Arena arena{(char*)memory};
  float* const squares = arena.take<float>(Floats::kRows * wide(I));
  float* const norms = arena.take<float>(Floats::kRows * wide(O));
  float* const units = arena.take<float>(Floats::kRows);
  for (Index b0 = first; memory && b0 < last; b0 += Floats::kRows) {
    const Index rows = smaller(Floats::kRows, last - b0);
    square_styles(call, l, b0, b0 + rows, squares, units);
    Floats::product(rows, squares, I, plan.layers[l].squares, O, norms);
    for (Index b = 0; b < rows; ++b) {
      const float inverse = 1 / units[b], eps = call.eps * inverse * inverse;
      float* const scale = y.scale + (b0 + b) * O;
      const float* const norm = norms + b * wide(O);
      for (Index j = 0; j < O; ++j) scale[j] = inverse / __builtin_sqrtf(norm[j] + eps);
    }
  }
  return arena.used;
}

// The gradients of styles and scales of samples first..last, from the sums over each unit.
size_t finish_samples(const SirenPlan& plan, Index l, Index first, Index last, void* memory) {
  const Siren& call = *plan.call;
  const SirenLayer& y = call.layers[l];
  const SirenLayerPlan& z = plan.layers[l];
  const Index O = y.outputs, I = y.inputs;
  Arena arena{(char*)memory};
  float* const product = arena.take<float>(Floats::kRows * wide(I));
  float* const line = arena.take<float>(larger(wide(O), wide(I)));
  float* const style = arena.take<float>(wide(I));
  float* const units = arena.take<float>(Floats::kRows);
  const auto total = [&](const float* slots, Index sample, Index width) {
    for (Index j = 0; j < width; j += VL) {
      vf sum = load(slots + sample * wide(width) + j);
      for (Index part = 1; part < plan.parts; ++part) sum += load(slots + (part * call.batch + sample) * wide(width) + j);
      store(line + j, sum);
    }
  };
  for (Index b0 = first; memory && b0 < last; b0 += Floats::kRows) {
    const Index rows = smaller(Floats::kRows, last - b0);
    if (call.demodulate) {
      float* const factors = z.factors + b0 * wide(O);
      square_styles(call, l, b0, b0 + rows, z.style_squares + b0 * wide(I), units);
      for (Index b = 0; b < rows; ++b) {
        total(z.slot_scale, b0 + b, O);
        const float unit = units[b], inverse = 1 / unit;
        const float* const scale = y.scale + (b0 + b) * O;
        for (Index j = 0; j < up(O); ++j) {
          const float g = j < O ? scale[j] * unit : 0;
          factors[b * wide(O) + j] = line[j] * inverse * g * g * g;
        }
      }
      if (y.grad_style) multiply_packed(rows, factors, wide(O), z.squares, O, up(I) / VL, product, wide(I));
    } else if (y.grad_scale) {
      for (Index b = 0; b < rows; ++b) {
        total(z.slot_scale, b0 + b, O);
        write_row(y.grad_scale, false, (b0 + b) * O, O, line);
      }
    }
    for (Index b = 0; y.grad_style && b < rows; ++b) {
      total(z.slot_style, b0 + b, I);
      if (call.demodulate) {
        const float inverse = 1 / units[b];
        read_row(y.style, call.bf16, (b0 + b) * I, I, style);
        for (Index j = 0; j < I; j += VL) {
          store(line + j, load(line + j) - (load(style + j) * inverse) * inverse * load(product + b * wide(I) + j));
        }
      }
      write_row(y.grad_style, call.bf16, (b0 + b) * I, I, line);
    }
  }
  return arena.used;
}

// Rows first..last of the gradient of a weight, from the sums of all lanes.
size_t finish_weight(const SirenPlan& plan, Index l, Index first, Index last, const SirenSums* lanes, Index count,
                     void* memory) {
  const Siren& call = *plan.call;
  const SirenLayer& y = call.layers[l];
  const Index O = y.outputs, I = y.inputs, rows = last - first;
  Arena arena{(char*)memory};
  float* const through_norms = arena.take<float>(rows * wide(I));
  float* const line = arena.take<float>(wide(I));
  float* const weight = arena.take<float>(wide(I));
  if (!memory) return arena.used;
  for (Index b = 0; call.demodulate && b < call.batch; b += kDepth) {
    multiply(rows, up(I) / VL, smaller(kDepth, call.batch - b), plan.layers[l].factors + b * wide(O) + first, 1, wide(O),
             plan.layers[l].style_squares + b * wide(I), wide(I), through_norms, wide(I), b > 0);
  }
  for (Index o = first; o < last; ++o) {
    if (call.demodulate) read_row(y.weight, call.bf16, o * I, I, weight);
    for (Index j = 0; j < I; j += VL) {
      vf sum = load(lanes[0].weights[l] + o * wide(I) + j);
      for (Index lane = 1; lane < count; ++lane) sum += load(lanes[lane].weights[l] + o * wide(I) + j);
      if (call.demodulate) sum -= load(weight + j) * load(through_norms + (o - first) * wide(I) + j);
      store(line + j, sum);
    }
    write_row(y.grad_weight, call.bf16, o * I, I, line);
  }
  return arena.used;
}

// The gradient of the bias of a layer, or of points first..last of a shared x where the layer is -1.
void finish_sums(const SirenPlan& plan, Index l, Index first, Index last, const SirenSums* lanes, Index count, void* memory) {
  const Siren& call = *plan.call;
  const Index width = l < 0 ? call.layers[0].inputs : call.layers[l].outputs;
  float* const line = (float*)memory;
  for (Index i = first; i < last; ++i) {
    const auto of = [&](Index lane) { return l < 0 ? lanes[lane].x + i * wide(width) : lanes[lane].biases[l]; };
    for (Index j = 0; j < width; j += VL) {
      vf sum = load(of(0) + j);
      for (Index lane = 1; lane < count; ++lane) sum += load(of(lane) + j);
      store(line + j, sum);
    }
    write_row(l < 0 ? call.grad_x : call.layers[l].grad_bias, call.bf16, i * width, width, line);
  }
}

template <typename Products, typename Packed>
size_t pack_layers(SirenPlan& plan, bool backward, void* memory) {
  const Siren& call = *plan.call;
  Arena arena{(char*)memory};
  const Index widest = wide(widest_of(call)) + 16;  // 32 in rows of tiles
  float* const spare = arena.take<float>(widest * widest);
  for (Index l = 0; l < call.depth; ++l) {
    const SirenLayer& y = call.layers[l];
    SirenLayerPlan& z = plan.layers[l];
    const Index O = y.outputs, I = y.inputs;
    Packed* const forward = backward && call.kept() ? nullptr : arena.take<Packed>(Products::packed_size(O, I, false));
    Packed* const back = backward ? arena.take<Packed>(Products::packed_size(O, I, true)) : nullptr;
    float* const squares = call.demodulate ? arena.take<float>(Floats::packed_size(O, I, backward)) : nullptr;
    float* const bias = arena.take<float>(wide(O));
    if (!memory) continue;
    if (forward) Products::pack(y, call.bf16, false, spare, forward);
    if (back) Products::pack(y, call.bf16, true, spare, back);
    if (squares) {
      Floats::pack(y, call.bf16, backward, spare, squares);
      for (Index at = 0; at < Floats::packed_size(O, I, backward); ++at) squares[at] *= squares[at];
    }
    if (y.bias) read_row(y.bias, call.bf16, 0, O, bias);
    else fill(bias, 0, up(O));
    z.forward = forward;
    z.backward = back;
    z.squares = squares;
    z.bias = bias;
  }
  const Index I = call.layers[0].inputs;
  if (call.shared && !call.bf16 && I % 16 == 0) {
    plan.shared_x = (const float*)call.x;
  } else if (call.shared) {
    float* const x = arena.take<float>(call.points * wide(I));
    for (Index i = 0; memory && i < call.points; ++i) read_row(call.x, call.bf16, i * I, I, x + i * wide(I));
    plan.shared_x = x;
  }
  return arena.used;
}

#ifdef __AMX_TILE__
typedef Tiles Bf16Products;
typedef bf16 Bf16Packed;
constexpr bool kHaveTiles = true;
#else
typedef Floats Bf16Products;
typedef float Bf16Packed;
constexpr bool kHaveTiles = false;
#endif

size_t pack(SirenPlan& plan, bool backward, void* memory) {
  return plan.tiles ? pack_layers<Bf16Products, Bf16Packed>(plan, backward, memory)
                    : pack_layers<Floats, float>(plan, backward, memory);
}

size_t units(const SirenPlan& plan, Index first, Index last, const SirenSums* sums, bool backward, void* memory) {
  return (plan.tiles ? run_units<Bf16Products> : run_units<Floats>)(plan, first, last, sums, backward, memory);
}

}  // namespace

extern const SirenKernels siren_kernels = {
    kHaveTiles, Floats::kRows, Bf16Products::kRows, pack, units, demodulate, finish_samples, finish_weight, finish_sums};

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
