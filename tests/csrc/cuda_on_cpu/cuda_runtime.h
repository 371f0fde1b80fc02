// Compiles a .cu file with a C++ compiler and runs its kernels on the CPU: what spectral_norm.cu uses of CUDA, no more.
//
// The threads of a block are fibres on one thread of the operating system. A fibre runs until it waits: at the barrier of
// its block, at a shuffle of its warp, or at the barrier of the grid. When none can run, whoever waits with all others
// goes on; a set of fibres that waits for what never comes ends the program with a message. The blocks of a plain launch
// run in turn; those of a cooperative one at the same time, each on a thread of its own. The order of fibres and of
// blocks can be turned round, so that a result which depends on it shows.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local  // a block is the only one on its thread

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;
constexpr std::size_t kStackBytes = 64 * 1024;

// What the tests look at and set; the functions at the end of this file are for them.
struct Device {
  int current = 0;
  int reversed = 0;
  int fail_next = 0;
  int launches = 0, cooperative_launches = 0, launched_on = -1;
  void* stream = nullptr;
};
inline Device device;
constexpr int kDevices = 2;

// Where the blocks of a cooperative launch meet.
class GridBarrier {
 public:
  explicit GridBarrier(unsigned blocks) : blocks_(blocks) {}
  void wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned generation = generation_;
    if (++arrived_ == blocks_) {
      arrived_ = 0;
      ++generation_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return generation != generation_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  unsigned blocks_, arrived_ = 0, generation_ = 0;
};

enum class State { ready, at_warp, at_block, at_grid, done };

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  dim3 index;
  State state;
  unsigned shuffles;  // so far, modulo two: a lane may be at its next one while another has yet to read
  void* fake_stack;
};

class Block {
 public:
  dim3 index, size, grid;

  void run(dim3 at, dim3 threads, dim3 blocks, GridBarrier* barrier, const std::function<void()>& kernel);
  Fibre& current() { return fibres_[running_]; }

  void wait(State where) {
    Fibre& me = current();
    me.state = where;
    leave(me);
  }

  template <typename T>
  T shuffle_xor(T value, unsigned mask) {
    static_assert(sizeof(T) <= 8, "a shuffle moves up to eight bytes");
    const std::size_t me = running_;
    char(*const slots)[8] = slots_[(fibres_[me].shuffles++) % 2].get();
    std::memcpy(slots[me], &value, sizeof(T));
    wait(State::at_warp);
    std::memcpy(&value, slots[me ^ mask], sizeof(T));
    return value;
  }

 private:
  static void enter();
  void enter_fibre(Fibre& fibre);
  void leave(Fibre& fibre);
  bool release(std::size_t begin, std::size_t end, State where);

  std::vector<Fibre> fibres_;
  std::size_t running_ = 0;
  ucontext_t scheduler_;
  const std::function<void()>* kernel_ = nullptr;
  std::unique_ptr<char[][8]> slots_[2];
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_stack_bytes_ = 0;
};

inline thread_local Block* block = nullptr;

inline void Block::enter_fibre(Fibre& fibre) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibre.stack.get(), kStackBytes);
  swapcontext(&scheduler_, &fibre.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  swapcontext(&scheduler_, &fibre.context);
#endif
}

inline void Block::leave(Fibre& fibre) {
#if defined(__SANITIZE_ADDRESS__)
  const bool ends = fibre.state == State::done;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fibre.fake_stack, scheduler_stack_, scheduler_stack_bytes_);
  swapcontext(&fibre.context, &scheduler_);
  __sanitizer_finish_switch_fiber(fibre.fake_stack, &scheduler_stack_, &scheduler_stack_bytes_);
#else
  swapcontext(&fibre.context, &scheduler_);
#endif
}

inline void Block::enter() {
  Block& self = *block;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &self.scheduler_stack_, &self.scheduler_stack_bytes_);
#endif
  (*self.kernel_)();
  self.wait(State::done);
}

// If all fibres from begin to end that are not done wait in this way, they go on.
inline bool Block::release(std::size_t begin, std::size_t end, State where) {
  bool any = false;
  for (std::size_t i = begin; i < end; ++i) {
    if (fibres_[i].state == State::done) continue;
    if (fibres_[i].state != where) return false;
    any = true;
  }
  for (std::size_t i = begin; i < end; ++i) {
    if (fibres_[i].state != State::done) fibres_[i].state = State::ready;
  }
  return any;
}

inline void Block::run(dim3 at, dim3 threads, dim3 blocks, GridBarrier* barrier, const std::function<void()>& kernel) {
  index = at;
  size = threads;
  grid = blocks;
  kernel_ = &kernel;
  block = this;
  const std::size_t count = threads.x;
  fibres_.resize(count);
  for (auto& slots : slots_) slots = std::make_unique<char[][8]>(count);
  for (std::size_t i = 0; i < count; ++i) {
    Fibre& fibre = fibres_[i];
    if (!fibre.stack) fibre.stack.reset(new char[kStackBytes]);
    fibre.index = dim3(static_cast<unsigned>(i), 0, 0);
    fibre.state = State::ready;
    fibre.shuffles = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.get();
    fibre.context.uc_stack.ss_size = kStackBytes;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, &Block::enter, 0);
  }
  for (;;) {
    bool ran = false, all_done = true;
    for (std::size_t i = 0; i < count; ++i) {
      running_ = device.reversed ? count - 1 - i : i;
      if (current().state == State::ready) {
        enter_fibre(current());
        ran = true;
      }
      all_done = all_done && current().state == State::done;
    }
    if (all_done) break;
    if (ran) continue;
    bool released = release(0, count, State::at_block);
    for (std::size_t i = 0; i < count; i += kWarpSize) {
      released = release(i, std::min(i + kWarpSize, count), State::at_warp) || released;
    }
    if (!released && barrier && release(0, count, State::at_grid)) {
      barrier->wait();
      released = true;
    }
    if (!released) {
      std::fprintf(stderr, "cuda_on_cpu: the threads of block %u wait for each other at different places\n", index.x);
      std::abort();
    }
  }
  block = nullptr;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::block->current().index)
#define blockIdx (cuda_on_cpu::block->index)
#define blockDim (cuda_on_cpu::block->size)
#define gridDim (cuda_on_cpu::block->grid)

using std::min;

inline void __syncthreads() { cuda_on_cpu::block->wait(cuda_on_cpu::State::at_block); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_on_cpu::block->shuffle_xor(value, static_cast<unsigned>(mask));
}

// The runtime's interface

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrCooperativeLaunch };
using cudaStream_t = void*;
struct cudaFuncAttributes {};

inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "cudaErrorInvalidDevice" : "cudaErrorLaunchFailure";
}
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "unspecified launch failure";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_on_cpu::device.current;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= cuda_on_cpu::kDevices) return cudaErrorInvalidDevice;
  cuda_on_cpu::device.current = device;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : 1;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel, int, std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}
template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  return cudaSuccess;
}

namespace cuda_on_cpu {

template <typename... Arguments, std::size_t... I>
std::function<void()> bound(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
  return [=] { kernel(*static_cast<std::remove_const_t<Arguments>*>(arguments[I])...); };
}

inline cudaError_t launch(const std::function<void()>& kernel, dim3 grid, dim3 threads, bool together, void* stream) {
  if (std::exchange(device.fail_next, 0)) return cudaErrorLaunchFailure;
  ++(together ? device.cooperative_launches : device.launches);
  device.launched_on = device.current;
  device.stream = stream;
  if (!together) {
    Block one;
    for (unsigned i = 0; i < grid.x; ++i) {
      one.run(dim3(device.reversed ? grid.x - 1 - i : i, 0, 0), threads, grid, nullptr, kernel);
    }
    return cudaSuccess;
  }
  GridBarrier barrier(grid.x);
  std::vector<std::thread> workers;
  for (unsigned i = 0; i < grid.x; ++i) {
    workers.emplace_back([&, i] { std::make_unique<Block>()->run(dim3(i, 0, 0), threads, grid, &barrier, kernel); });
  }
  for (std::thread& worker : workers) worker.join();
  return cudaSuccess;
}

}  // namespace cuda_on_cpu

template <typename... Arguments>
cudaError_t cudaLaunchKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads, void** arguments, std::size_t,
                             cudaStream_t stream) {
  const auto call = cuda_on_cpu::bound(kernel, arguments, std::index_sequence_for<Arguments...>{});
  return cuda_on_cpu::launch(call, grid, threads, false, stream);
}

template <typename... Arguments>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(Arguments...), dim3 grid, dim3 threads, void** arguments,
                                        std::size_t, cudaStream_t stream) {
  const auto call = cuda_on_cpu::bound(kernel, arguments, std::index_sequence_for<Arguments...>{});
  return cuda_on_cpu::launch(call, grid, threads, true, stream);
}

// For the tests, by ctypes
extern "C" __attribute__((visibility("default"), used)) inline cuda_on_cpu::Device* cuda_on_cpu_device() {
  return &cuda_on_cpu::device;
}
