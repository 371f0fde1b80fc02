// Work shared among threads, and each thread's own memory for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace vitgan {

// Calls work(item) once for each item below `items`, on up to so many threads, the caller among them, and returns when
// all are done. Items are taken one by one in their order; where results do not depend on who computes an item, they
// are the same for any number of threads. What an item throws is thrown here, when all are done.
//
// The threads stay, asleep, for the next call; threads = 1 makes none. A call from within an item, or while another
// thread's call runs, is served by its own thread alone: no more run than were asked for. A forked process makes new ones.
void parallel_for(std::int64_t items, int threads, const std::function<void(std::int64_t)>& work);

// So many bytes, aligned to 64, of the calling thread's own: valid until its next call. What is in them is whatever was.
void* scratch(std::size_t bytes);

}  // namespace vitgan
