// L2 attention among threads: heads, and where there are fewer heads than threads, chunks of their rows too.
#include "l2_attention.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace vitgan {
namespace {

using Index = long long;

// Waking a thread costs about as much as so many multiplications.
constexpr Index kOperationsWorthAThread = 1 << 21;

// A head's rows in equal chunks. They decide the order of sums, and so depend on the rows alone.
struct Chunks {
  Index rows, count;
  explicit Chunks(Index rows) : rows(rows), count(std::clamp<Index>((rows + 511) / 512, 1, 16)) {}
  Index start(Index chunk) const { return chunk * rows / count; }
  Index size(Index chunk) const { return start(chunk + 1) - start(chunk); }
};

int useful_threads(const L2Call& call, int threads) {
  const Index worth = call.B * call.H * call.N * call.M * (call.d + call.e) / kOperationsWorthAThread;
  return static_cast<int>(std::clamp<Index>(worth, 1, std::max(threads, 1)));
}

void run_backward(const L2Call& call, int order, int threads) {
  const L2Kernels& kernels = l2_kernels_for(cpu_level());
  const auto pass = order == 1 ? kernels.backward : kernels.double_backward;
  const Index heads = call.B * call.H, size = kernels.sums_size(call), memory = kernels.memory_size(call, order);
  const Chunks chunks(call.N);
  threads = useful_threads(call, threads);
  const auto bytes = [](Index floats) { return static_cast<std::size_t>(floats) * sizeof(float); };
  const auto add = [&](float* sums, const float* more) {
    for (Index i = 0; i < size; ++i) sums[i] += more[i];
  };
  if (heads >= threads || chunks.count == 1) {
    parallel_for(heads, threads, [&](std::int64_t head) {
      float* const sums = static_cast<float*>(scratch(bytes(2 * size + memory)));
      for (Index chunk = 0; chunk < chunks.count; ++chunk) {
        float* const own = chunk == 0 ? sums : sums + size;
        pass(call, head, chunks.start(chunk), chunks.size(chunk), own, sums + 2 * size);
        if (chunk > 0) add(sums, own);
      }
      kernels.write_sums(call, head, sums);
    });
    return;
  }
  std::vector<float> all(static_cast<std::size_t>(heads * chunks.count * size));
  parallel_for(heads * chunks.count, threads, [&](std::int64_t item) {
    const Index head = item / chunks.count, chunk = item % chunks.count;
    pass(call, head, chunks.start(chunk), chunks.size(chunk), all.data() + item * size,
         static_cast<float*>(scratch(bytes(memory))));
  });
  parallel_for(heads, threads, [&](std::int64_t head) {
    float* const sums = all.data() + head * chunks.count * size;
    for (Index chunk = 1; chunk < chunks.count; ++chunk) add(sums, sums + chunk * size);
    kernels.write_sums(call, head, sums);
  });
}

}  // namespace

void l2_forward(const L2Call& call, int threads) {
  const L2Kernels& kernels = l2_kernels_for(cpu_level());
  const Index heads = call.B * call.H, memory = kernels.memory_size(call, 0);
  threads = useful_threads(call, threads);
  const Index chunks = heads >= threads ? 1 : Chunks(call.N).count;
  const Chunks rows(call.N);
  parallel_for(heads * chunks, threads, [&](std::int64_t item) {
    const Index head = item / chunks, chunk = item % chunks;
    const Index first = chunks == 1 ? 0 : rows.start(chunk), count = chunks == 1 ? call.N : rows.size(chunk);
    kernels.forward(call, head, first, count,
                    static_cast<float*>(scratch(static_cast<std::size_t>(memory) * sizeof(float))));
  });
}

void l2_backward(const L2Call& call, int threads) { run_backward(call, 1, threads); }
void l2_double_backward(const L2Call& call, int threads) { run_backward(call, 2, threads); }

}  // namespace vitgan
