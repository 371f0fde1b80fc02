#pragma once

#include "cuda_runtime.h"

namespace cooperative_groups {

struct grid_group {
  void sync() const { cuda_on_cpu::block->wait(cuda_on_cpu::State::at_grid); }
};

inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
