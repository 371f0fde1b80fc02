// L2 attention at one level. Compiled once for each (levels.h).
#include "l2_attention_first.h"
#include "l2_attention_second.h"

namespace vitgan {
namespace VITGAN_LEVEL {

static Index memory_size(const L2Call& call, int order) {
  Arena arena(nullptr);
  if (order == 0) ForwardMemory(call, arena);
  if (order == 1) BackwardMemory(call, arena);
  if (order == 2) DoubleBackwardMemory(call, arena);
  return arena.floats();
}

static Index sums_size(const L2Call& call) {
  Arena arena(nullptr);
  const Sums sums(call, arena);
  return arena.floats();
}

extern const L2Kernels l2_kernels = {memory_size, sums_size, forward, backward, double_backward, write_sums};

}  // namespace VITGAN_LEVEL
}  // namespace vitgan
