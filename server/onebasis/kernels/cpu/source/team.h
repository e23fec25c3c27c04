// The threads that compute a step together. They share out the items of one phase after the other, and wait for each
// other after every phase.
//
// Not OpenMP: its threads stop spinning at barriers, and sleep, as soon as the process has other teams (torch has one
// for each Python thread), and a dynamic loop scatters neighbouring panels over the threads. See decision 0006.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <thread>
#include <vector>

class Team;

// One thread's part in a step.
class Member {
  public:
    Member(Team& team, int index) : team_(team), index_(index) {}

    int index() const { return index_; }

    // work(i) for every i below n_items, by one of the team's threads each; all of it is done on return. Every thread
    // of the team must call it with the same n_items.
    template <class Work>
    void share(int n_items, const Work& work);

    // Wait until every thread of the team is here.
    void meet();

  private:
    Team& team_;
    const int index_;
    int n_shared_ = 0;
};

class Team {
  public:
    explicit Team(int n_members) : n_members_(n_members), turns_(kTurns * n_members) {
        for (int i = 1; i < n_members; ++i) threads_.emplace_back([this, i] { serve(i); });
    }

    ~Team() {
        call_ = nullptr;
        begin();
        for (std::thread& thread : threads_) thread.join();
    }

    int n_members() const { return n_members_; }

    // job(member) on every thread, the caller's among them. One caller at a time.
    template <class Job>
    void run(const Job& job) {
        job_ = &job;
        call_ = [](const void* erased, Member& member) { (*static_cast<const Job*>(erased))(member); };
        for (Turn& turn : turns_) turn.next.store(0, std::memory_order_relaxed);
        begin();
        Member first(*this, 0);
        job(first);
        first.meet();
    }

  private:
    friend class Member;

    static constexpr int kTurns = 3;      // sets of turns: one in use, one that a late thread may look at, one fresh
    static constexpr int kSpins = 4000;   // some 0.1 ms
    static constexpr int kYields = 4000;  // some 2 ms in which whoever else needs the core gets it; then the thread sleeps

    struct alignas(64) Turn {
        std::atomic<int> next{0};  // of a thread's own items, the first that nobody has taken
    };

    void begin() {
        started_.fetch_add(1, std::memory_order_release);
        started_.notify_all();
    }

    void serve(int index) {
        for (unsigned n_seen = 0;; ++n_seen) {
            await_change(started_, n_seen);
            if (call_ == nullptr) return;
            Member member(*this, index);
            call_(job_, member);
            member.meet();
        }
    }

    static void await_change(const std::atomic<unsigned>& number, unsigned old) {
        for (int i = 0; i < kSpins; ++i) {
            if (number.load(std::memory_order_acquire) != old) return;
            _mm_pause();
        }
        for (int i = 0; i < kYields; ++i) {
            if (number.load(std::memory_order_acquire) != old) return;
            std::this_thread::yield();
        }
        number.wait(old, std::memory_order_acquire);
    }

    const int n_members_;
    std::vector<Turn> turns_;  // [kTurns][n_members]
    const void* job_ = nullptr;
    void (*call_)(const void*, Member&) = nullptr;  // null: the threads end
    alignas(64) std::atomic<unsigned> started_{0};
    alignas(64) std::atomic<unsigned> n_met_{0};
    alignas(64) std::atomic<int> n_here_{0};
    std::vector<std::thread> threads_;
};

inline void Member::meet() {
    const unsigned n_met = team_.n_met_.load(std::memory_order_relaxed);
    if (team_.n_here_.fetch_add(1, std::memory_order_acq_rel) + 1 < team_.n_members_) {
        Team::await_change(team_.n_met_, n_met);
        return;
    }
    team_.n_here_.store(0, std::memory_order_relaxed);
    team_.n_met_.fetch_add(1, std::memory_order_release);
    team_.n_met_.notify_all();
}

template <class Work>
void Member::share(int n_items, const Work& work) {
    const int n_members = team_.n_members_;
    Team::Turn* turns = &team_.turns_[n_shared_ % Team::kTurns * n_members];
    // Nobody looks at the next set yet, and nobody at what it was before: that phase ended two meetings ago.
    team_.turns_[(n_shared_ + 1) % Team::kTurns * n_members + index_].next.store(0, std::memory_order_relaxed);
    ++n_shared_;
    const auto first_of = [&](int i) { return static_cast<int>((int64_t{n_items} * i + n_members - 1) / n_members); };
    for (int step = 0; step < n_members; ++step) {  // its own items in order, memory likes that; then what others left
        const int owner = (index_ + step) % n_members;
        const int first = first_of(owner), n_own = first_of(owner + 1) - first;
        for (int i; (i = turns[owner].next.fetch_add(1, std::memory_order_relaxed)) < n_own;) work(first + i);
    }
    meet();
}
