// Threads that sleep between calls, and take items from a job that they share with the caller.
#include "threads.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace vitgan {
namespace {

using Work = std::function<void(std::int64_t)>;

// A thread that wakes late finds no item left, and touches nothing else: `work` may be gone by then.
struct Job {
  Job(std::int64_t items, int helpers, const Work& work) : items(items), helpers(helpers), work(&work) {}

  void take() {
    std::int64_t taken = 0;
    for (std::int64_t i = next++; i < items; i = next++, ++taken) (*work)(i);
    if (taken == 0) return;
    const std::lock_guard<std::mutex> lock(mutex);
    done += taken;
    if (done == items) all_done.notify_one();
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    all_done.wait(lock, [this] { return done == items; });
  }

  const std::int64_t items;
  int helpers;  // that may still join; under the pool's lock
  const Work* const work;
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  std::int64_t done = 0;
};

class Pool {
 public:
  // False where the pool is at work already.
  bool run(std::int64_t items, int threads, const Work& work) {
    if (busy_.exchange(true)) return false;
    const auto job = std::make_shared<Job>(items, threads - 1, work);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; size_ < threads - 1; ++size_) std::thread([this] { serve(); }).detach();
      } catch (const std::system_error&) {
        // no more threads to be had: those that there are do all the work
      }
      job_ = job;
    }
    wake_.notify_all();
    job->take();
    job->wait();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_.reset();
    }
    busy_ = false;
    return true;
  }

 private:
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return job_ && job_->helpers > 0; });
      const std::shared_ptr<Job> job = job_;
      --job->helpers;
      lock.unlock();
      job->take();
      lock.lock();
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::shared_ptr<Job> job_;
  int size_ = 0;
};

// Never deleted: its threads sleep on it until the process ends.
std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
#if defined(__unix__) || defined(__APPLE__)
  // a child of fork has none of the threads
  static const int registered = pthread_atfork(nullptr, nullptr, [] { pool = nullptr; });
  (void)registered;
#endif
  Pool* there = pool;
  if (there) return *there;
  auto made = std::make_unique<Pool>();
  return pool.compare_exchange_strong(there, made.get()) ? *made.release() : *there;
}

thread_local bool within_an_item = false;

struct Memory {
  ~Memory() { std::free(bytes); }
  void* bytes = nullptr;
  std::size_t size = 0;
};

}  // namespace

void parallel_for(std::int64_t items, int threads, const Work& work) {
  if (items < threads) threads = static_cast<int>(items);
  if (threads > 1 && !within_an_item) {
    std::exception_ptr failure;
    std::mutex mutex;
    const Work guarded = [&](std::int64_t item) {
      within_an_item = true;
      try {
        work(item);
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
      within_an_item = false;
    };
    if (the_pool().run(items, threads, guarded)) {
      if (failure) std::rethrow_exception(failure);
      return;
    }
  }
  for (std::int64_t item = 0; item < items; ++item) work(item);
}

void* scratch(std::size_t bytes) {
  static thread_local Memory memory;
  if (bytes > memory.size) {
    std::free(memory.bytes);
    memory.size = 0;
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    memory.bytes = std::aligned_alloc(4096, rounded);
    if (!memory.bytes) throw std::bad_alloc();
    memory.size = rounded;
  }
  return memory.bytes;
}

}  // namespace vitgan
