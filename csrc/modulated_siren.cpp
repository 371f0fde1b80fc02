// Units, lanes and memory of the modulated SIREN: which thread runs what of a level's kernels.
#include "modulated_siren.h"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <vector>

#include "threads.h"

namespace vitgan {
namespace {

constexpr int64_t kLanes = 8;
constexpr int64_t kRowsOfLane = 512;       // at least: a lane costs the memory of all weights
constexpr int64_t kWorthAThread = 1 << 20;  // products of numbers

// Memory of the calling thread for what all threads share. It stays for the next call.
char* shared_memory(size_t bytes) {
  struct Memory {
    ~Memory() { std::free(bytes); }
    char* bytes = nullptr;
    size_t size = 0;
  };
  static thread_local Memory memory;
  if (bytes > memory.size) {
    std::free(memory.bytes);
    memory.size = 0;
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    memory.bytes = static_cast<char*>(std::aligned_alloc(4096, rounded));
    if (!memory.bytes) throw std::bad_alloc();
    memory.size = rounded;
  }
  return memory.bytes;
}

// Pieces of memory, first only counted.
struct Pieces {
  char* memory = nullptr;
  size_t used = 0;

  float* floats(int64_t count) {
    float* const piece = memory ? reinterpret_cast<float*>(memory + used) : nullptr;
    used += (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
    return piece;
  }
};

class Run {
 public:
  Run(const Siren& call, int threads) : call_(call), kernels_(siren_kernels_for(cpu_level())), layers_(call.depth) {
    int64_t narrowest = call.layers[0].inputs, work = 0;
    bool keeps = false;
    for (int64_t l = 0; l < call.depth; ++l) {
      const SirenLayer& y = call.layers[l];
      narrowest = std::min(narrowest, y.inputs);
      work += call.batch * call.points * y.inputs * y.outputs;
      keeps = keeps || y.products;
    }
    threads_ = work < kWorthAThread ? 1 : threads;
    plan_.call = &call;
    plan_.layers = layers_.data();
    plan_.tiles = kernels_.have_tiles && call.bf16 && !keeps && narrowest >= 16;
    const int64_t rows = plan_.tiles ? kernels_.rows_on_tiles : kernels_.rows;
    plan_.samples = std::max<int64_t>(1, rows / call.points);
    plan_.parts = (call.points + rows - 1) / rows;
    plan_.units = plan_.parts > 1 ? plan_.parts * call.batch : (call.batch + plan_.samples - 1) / plan_.samples;
  }

  void forward() {
    prepare(false, [](Pieces&) {});
    if (call_.demodulate) demodulate();
    const int64_t items = std::min<int64_t>(plan_.units, threads_ == 1 ? 1 : 4 * threads_);
    parallel_for(items, threads_, [&](int64_t item) {
      const size_t bytes = kernels_.units(plan_, 0, 0, nullptr, false, nullptr);
      kernels_.units(plan_, item * plan_.units / items, (item + 1) * plan_.units / items, nullptr, false, scratch(bytes));
    });
  }

  void backward() {
    choose_lanes();
    prepare(true, [&](Pieces& pieces) { place_sums(pieces); });
    parallel_for(lanes_, threads_, [&](int64_t lane) {
      const auto [first, last] = units_of(lane);
      clear_x(lane);
      const size_t bytes = kernels_.units(plan_, 0, 0, nullptr, true, nullptr);
      kernels_.units(plan_, first, last, &sums_[static_cast<size_t>(lane)], true, scratch(bytes));
    });
    finish();
  }

 private:
  void demodulate() {
    for (int64_t l = 0; l < call_.depth; ++l) {
      in_blocks(call_.batch, 96, [&](int64_t first, int64_t last) {
        kernels_.demodulate(plan_, l, first, last, scratch(kernels_.demodulate(plan_, l, 0, 0, nullptr)));
      });
    }
  }

  // Lanes are as many as the shapes say. Where a sample has many parts, a lane has some of them of every sample: then the
  // gradients of a shared x that lanes add up do not meet.
  void choose_lanes() {
    lanes_ = std::clamp<int64_t>(call_.batch * call_.points / kRowsOfLane, 1, std::min(kLanes, plan_.units));
    by_parts_ = plan_.parts >= lanes_;
  }

  std::pair<int64_t, int64_t> units_of(int64_t lane) const {
    const auto bound = [&](int64_t index) {
      return by_parts_ ? index * plan_.parts / lanes_ * (plan_.units / plan_.parts) : index * plan_.units / lanes_;
    };
    return {bound(lane), bound(lane + 1)};
  }

  // One lane is all that there is where parts are 1 and lanes are.
  void clear_x(int64_t lane) const {
    if (!call_.grad_x || !call_.shared) return;
    const int64_t width = wide(call_.layers[0].inputs);
    const int64_t first = by_parts_ ? lane * plan_.parts / lanes_ : 0, last = by_parts_ ? (lane + 1) * plan_.parts / lanes_ : plan_.parts;
    float* const x = sums_[static_cast<size_t>(lane)].x;
    std::fill(x + first * call_.points / plan_.parts * width, x + last * call_.points / plan_.parts * width, 0.f);
  }

  // Where the sum of a lane is the gradient itself
  bool in_place(int64_t l) const {
    return lanes_ == 1 && !call_.bf16 && !call_.demodulate && call_.layers[l].inputs % 16 == 0;
  }

  void place_sums(Pieces& pieces) {
    const int64_t slots = plan_.parts == 1 ? call_.batch : plan_.units;
    for (int64_t l = 0; l < call_.depth; ++l) {
      const SirenLayer& y = call_.layers[l];
      SirenLayerPlan& z = layers_[static_cast<size_t>(l)];
      z.slot_style = y.grad_style ? pieces.floats(slots * wide(y.inputs)) : nullptr;
      z.slot_scale = y.scale ? pieces.floats(slots * wide(y.outputs)) : nullptr;
      z.factors = call_.demodulate ? pieces.floats(call_.batch * wide(y.outputs)) : nullptr;
      z.style_squares = call_.demodulate ? pieces.floats(call_.batch * wide(y.inputs)) : nullptr;
    }
    sums_.resize(static_cast<size_t>(lanes_));
    pointers_.resize(static_cast<size_t>(2 * lanes_ * call_.depth));
    float** pointer = pointers_.data();
    for (SirenSums& sums : sums_) {
      sums.weights = pointer;
      sums.biases = pointer + call_.depth;
      pointer += 2 * call_.depth;
      for (int64_t l = 0; l < call_.depth; ++l) {
        const SirenLayer& y = call_.layers[l];
        float* const own = in_place(l) ? static_cast<float*>(y.grad_weight) : nullptr;
        sums.weights[l] = !y.grad_weight || own ? own : pieces.floats(wide(y.outputs) * wide(y.inputs));
        sums.biases[l] = y.grad_bias ? pieces.floats(2 * wide(y.outputs)) : nullptr;
      }
      const bool own_x = call_.grad_x && call_.shared && !(by_parts_ && &sums != &sums_[0]);
      sums.x = own_x ? pieces.floats(call_.points * wide(call_.layers[0].inputs)) : sums_[0].x;
    }
  }

  template <typename Place>
  void prepare(bool backward, const Place& place) {
    Pieces pieces;
    place(pieces);
    const size_t before = pieces.used, packed = kernels_.pack(plan_, backward, nullptr);
    pieces.memory = shared_memory(before + packed);
    pieces.used = 0;
    place(pieces);
    kernels_.pack(plan_, backward, pieces.memory + before);
  }

  template <typename Work>
  void in_blocks(int64_t count, int64_t size, const Work& work) {
    parallel_for((count + size - 1) / size, threads_, [&](int64_t block) {
      work(block * size, std::min(count, (block + 1) * size));
    });
  }

  void finish() {
    const SirenSums* const sums = sums_.data();
    for (int64_t l = 0; l < call_.depth; ++l) {
      const SirenLayer& y = call_.layers[l];
      if (y.grad_style || y.grad_scale || call_.demodulate) {
        in_blocks(call_.batch, 96, [&](int64_t first, int64_t last) {
          kernels_.finish_samples(plan_, l, first, last, scratch(kernels_.finish_samples(plan_, l, 0, 0, nullptr)));
        });
      }
      if (y.grad_weight && !in_place(l)) {
        in_blocks(y.outputs, 32, [&](int64_t first, int64_t last) {
          void* const memory = scratch(kernels_.finish_weight(plan_, l, first, last, sums, lanes_, nullptr));
          kernels_.finish_weight(plan_, l, first, last, sums, lanes_, memory);
        });
      }
      if (y.grad_bias) kernels_.finish_sums(plan_, l, 0, 1, sums, lanes_, scratch(sizeof(float) * wide(y.outputs)));
    }
    if (!call_.grad_x || !call_.shared) return;
    in_blocks(call_.points, 96, [&](int64_t first, int64_t last) {
      void* const row = scratch(sizeof(float) * wide(call_.layers[0].inputs));
      kernels_.finish_sums(plan_, -1, first, last, sums, by_parts_ ? 1 : lanes_, row);
    });
  }

  const Siren& call_;
  const SirenKernels& kernels_;
  std::vector<SirenLayerPlan> layers_;
  SirenPlan plan_{};
  int threads_;
  int64_t lanes_ = 1;
  bool by_parts_ = false;
  std::vector<SirenSums> sums_;
  std::vector<float*> pointers_;
};

}  // namespace

void siren_forward(const Siren& call, int threads) { Run(call, threads).forward(); }
void siren_backward(const Siren& call, int threads) { Run(call, threads).backward(); }

}  // namespace vitgan
