// Every pass of L2 attention over ragged shapes, on memory of exactly the size that it may touch, and on several threads:
// there the same bits as on one. Prints how many results differ or are not finite.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "l2_attention.h"

namespace {

using vitgan::L2Call;
using vitgan::L2View;
using Index = long long;

struct Problem {
  L2Call call{};
  std::vector<std::vector<float>> kept;  // moved when it grows, its elements' memory not
  std::mt19937 engine{0};

  Problem(Index heads, Index n, Index m, Index d, Index e, bool tied, bool euclidean) {
    call.B = 1, call.H = heads, call.N = n, call.M = m, call.d = d, call.e = e;
    call.scale = 0.1f, call.tied = tied, call.euclidean = euclidean;
    call.q = view(n, d), call.k = tied ? call.q : view(m, d), call.v = view(m, e), call.grad = view(n, e);
    call.a = view(n, d), call.b = tied ? call.a : view(m, d), call.c = view(m, e);
    call.out = view(n, e), call.dout = view(n, e), call.dq = view(n, d), call.dv = view(m, e);
    call.dk = tied ? call.dq : view(m, d);
    call.shift = memory(2 * heads * n), call.inverse = call.shift + heads * n;
  }
  float* memory(Index floats) {
    std::normal_distribution<float> normal;
    auto& values = kept.emplace_back(static_cast<std::size_t>(floats));
    for (float& value : values) value = normal(engine);
    return values.data();
  }
  L2View view(Index tokens, Index width) {
    return {memory(call.H * tokens * width), call.H * tokens * width, tokens * width, width};
  }
  void run(int threads) {
    vitgan::l2_forward(call, threads);
    vitgan::l2_backward(call, threads);
    vitgan::l2_double_backward(call, threads);
  }
  // as run, on scratch memory without anything behind it
  void run_exactly() {
    const auto& kernels = vitgan::l2_kernels_for(vitgan::cpu_level());
    for (int order = 0; order < 3; ++order) {
      for (Index head = 0; head < call.H; ++head) {
        std::vector<float> own(static_cast<std::size_t>(kernels.memory_size(call, order)));
        std::vector<float> sums(static_cast<std::size_t>(kernels.sums_size(call)));
        if (order == 0) kernels.forward(call, head, 0, call.N, own.data());
        if (order == 1) kernels.backward(call, head, 0, call.N, sums.data(), own.data());
        if (order == 2) kernels.double_backward(call, head, 0, call.N, sums.data(), own.data());
        if (order > 0) kernels.write_sums(call, head, sums.data());
      }
    }
  }
};

}  // namespace

int main() {
  int failures = 0;
  const Index shapes[][4] = {{1, 1, 1, 1}, {5, 7, 3, 17}, {17, 17, 32, 8}, {65, 63, 40, 16}, {33, 130, 129, 1}};
  for (const bool tied : {false, true}) {
    for (const bool euclidean : {false, true}) {
      for (const auto& [n, m, d, e] : shapes) {
        Problem problem(2, n, tied ? n : m, d, e, tied, euclidean);
        problem.run_exactly();
        for (const auto& values : problem.kept) {
          for (const float value : values) failures += !std::isfinite(value);
        }
      }
      Problem one(2, 523, 523, 24, 24, tied, euclidean), many(2, 523, 523, 24, 24, tied, euclidean);
      one.run(1);
      many.run(5);
      failures += one.kept != many.kept;
    }
  }
  std::printf("%d results disagree\n", failures);
  return failures ? 1 : 0;
}
