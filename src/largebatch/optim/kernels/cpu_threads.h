// Threads that share out numbered pieces of work: those of the OpenMP that PyTorch has brought, or some of our own.
//
// The threads of an OpenMP that has just ended some work go on looking for more for milliseconds. Threads of our own
// then have to share the processors with them, which takes half as long again for the step that follows a backward
// pass. So where the process has a GOMP_parallel, which GNU's, LLVM's and Intel's OpenMP have on Linux, that is used.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
inline void relax() { _mm_pause(); }
#elif defined(__aarch64__)
inline void relax() { asm volatile("yield"); }
#else
inline void relax() {}
#endif

using Work = void (*)(void *, int64_t);
// GOMP_parallel and omp_get_thread_num.
struct OpenMP {
  void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
  int (*number)();
};

// Numbered pieces of work, shared out so that a thread gets the same ones in two sweeps over as many: processors may
// have last-level caches of their own, and what one has changed is far from another. Each thread has a run of pieces,
// which it takes one by one, forwards or backwards; then it takes what the others have left.
class Pieces {
 public:
  Pieces(int64_t count, int64_t threads, bool backwards, Work work, void *context)
      : shares_(threads < MOST ? threads : MOST), backwards_(backwards), work_(work), context_(context) {
    for (int64_t i = 0; i < shares_; ++i) {
      share_[i].first = count * i / shares_;
      share_[i].count = count * (i + 1) / shares_ - share_[i].first;
    }
    std::fegetenv(&environment_);  // rounding, and whether subnormal numbers are flushed
  }

  void take(int64_t thread) {
    for (int64_t turn = 0; turn < shares_; ++turn) {
      Share &share = share_[(thread + turn) % shares_];
      for (int64_t i; (i = share.taken.fetch_add(1, std::memory_order_relaxed)) < share.count;)
        work_(context_, share.first + (backwards_ ? share.count - 1 - i : i));
    }
  }

  // Takes pieces on a thread other than the caller's, by the caller's rules of arithmetic.
  void take_elsewhere(int64_t thread) {
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&environment_);
    take(thread);
    std::fesetenv(&own);
  }

 private:
  static constexpr int64_t MOST = 256;
  struct alignas(64) Share {  // one in each line of the cache
    int64_t first, count;
    std::atomic<int64_t> taken{0};
  };

  Share share_[MOST];
  int64_t shares_;
  bool backwards_;
  Work work_;
  void *context_;
  std::fenv_t environment_;
};

// Threads of our own. They are started when first needed and sleep between steps.
class Threads {
 public:
  // Does the pieces on up to `wanted` threads, the caller among them. Nobody waits for a thread that has not yet woken
  // up when the work is done. Where another caller has the threads, the caller does all of it.
  void share(Pieces &pieces, int64_t wanted) {
    if (wanted > MOST) wanted = MOST;
    std::unique_lock<std::mutex> alone(calls_, std::try_to_lock);
    if (!alone.owns_lock()) return pieces.take(0);
    while (started_ < wanted - 1 && start(started_ + 1)) ++started_;
    pieces_ = &pieces;
    const uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | OPEN | uint64_t(wanted) << 15, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst) > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    pieces.take(0);
    state_.fetch_and(~OPEN, std::memory_order_acq_rel);
    for (int64_t turn = 0; state_.load(std::memory_order_acquire) & INSIDE; ++turn)
      if (turn < 1000) relax();
      else std::this_thread::yield();
  }

 private:
  // The state in one word: generation of the work (32 bits), whether it is open to threads, how many it wants (15),
  // how many are inside (15).
  static constexpr uint64_t OPEN = uint64_t(1) << 31, INSIDE = (1 << 15) - 1;
  static constexpr int64_t MOST = (1 << 15) - 1;
  static constexpr auto SPIN = std::chrono::microseconds(50);  // the ratios of a list of layers take less

  bool start(int64_t number) {
    try {
      std::thread([this, number] { serve(number); }).detach();
      return true;
    } catch (...) {
      return false;  // no more threads to be had: fewer do the work
    }
  }

  static bool for_me(uint64_t state, uint64_t done, uint64_t number) {
    return (state & OPEN) && state >> 32 != done && number < (state >> 15 & MOST);
  }

  [[noreturn]] void serve(uint64_t number) {
    uint64_t done = 0;
    for (;;) {
      uint64_t state = await(done, number);
      if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
      pieces_->take_elsewhere(int64_t(number));
      done = state >> 32;
      state_.fetch_sub(1, std::memory_order_release);
    }
  }

  // Returns the state of work that is open to this thread: spins for a while, then sleeps.
  uint64_t await(uint64_t done, uint64_t number) {
    const auto until = std::chrono::steady_clock::now() + SPIN;
    uint64_t state;
    do {
      for (int turn = 0; turn < 16; ++turn) {
        if (for_me(state = state_.load(std::memory_order_acquire), done, number)) return state;
        relax();
      }
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock<std::mutex> lock(sleep_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return for_me(state = state_.load(std::memory_order_seq_cst), done, number); });
    asleep_.fetch_sub(1, std::memory_order_relaxed);
    return state;
  }

  std::mutex calls_, sleep_;
  std::condition_variable wake_;
  std::atomic<uint64_t> state_{0};
  std::atomic<int64_t> asleep_{0};
  int64_t started_ = 0;
  Pieces *pieces_ = nullptr;
};

// Those of this process. They are never taken down: at exit they may be asleep.
inline Threads &own_threads() {
  alignas(Threads) static char memory[sizeof(Threads)];
  // After a fork the child has none of them, and perhaps a locked mutex.
  static const int made = (new (memory) Threads, pthread_atfork(nullptr, nullptr, [] { new (memory) Threads; }));
  (void)made;
  return *std::launder(reinterpret_cast<Threads *>(memory));
}

// Calls `work(context, index)` for each index below `count` on up to `wanted` threads.
inline void share(int64_t count, int64_t wanted, const OpenMP &openmp, bool backwards, Work work, void *context) {
  if (wanted > count) wanted = count;
  struct Given {
    Pieces pieces;
    const OpenMP &openmp;
  } given{Pieces(count, wanted, backwards, work, context), openmp};
  if (wanted <= 1) given.pieces.take(0);
  else if (!openmp.parallel) own_threads().share(given.pieces, wanted);
  else
    openmp.parallel(
        [](void *a) {
          Given &given = *static_cast<Given *>(a);
          given.pieces.take_elsewhere(given.openmp.number());
        },
        &given, unsigned(wanted), 0);
}
