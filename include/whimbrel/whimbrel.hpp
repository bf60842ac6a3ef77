// Sessions in C++: memory larger than RAM, as typed arrays, allocators and std::pmr resources. C++20, header only, over
// <whimbrel/whimbrel.h>, where each call's contract is written down.
//
//   whimbrel::session session{{.ram = 1 << 30, .device = "zstd"}};
//   whimbrel::array<double> a(session, 1'000'000'000);           // 8 GB, of which 1 GiB is in RAM at a time
//   std::vector<int, whimbrel::allocator<int>> v{whimbrel::allocator<int>(session)};
//   whimbrel::memory_resource resource(session);                  // for std::pmr containers
//   auto coming = session.prefetch_async(a.subspan(0, 1 << 20));  // ... other work ...
//   whimbrel::outcome there = coming.wait();
//
// Errors: whimbrel::error, a std::system_error with the errno and the sentence of whimbrel_error(); memory that cannot
// be had: std::bad_alloc from allocators and resources. Hints return what happened instead. Ownership: memory must be
// gone before its session; a session that is destroyed before terminates the program with a word about it.
// Thread-safety: as of the C interface, every member at any time; moving and destroying excepted.
#ifndef WHIMBREL_WHIMBREL_HPP
#define WHIMBREL_WHIMBREL_HPP

#include <cerrno>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory_resource>
#include <new>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "whimbrel/whimbrel.h"

namespace whimbrel {

class error : public std::system_error {
 public:
  explicit error(int negative_errno) : std::system_error(-negative_errno, std::generic_category(), whimbrel_error()) {}
};

namespace detail {
inline long check(long result) {
  if (result < 0) throw error(static_cast<int>(result));
  return result;
}
}  // namespace detail

enum class advice {
  normal = WHIMBREL_NORMAL,
  sequential = WHIMBREL_SEQUENTIAL,
  random = WHIMBREL_RANDOM,
  cold = WHIMBREL_COLD,
  read_mostly = WHIMBREL_READ_MOSTLY,  // error with ENOTSUP: no device can
};

// What a hint did: asked = moved + already + empty + refused, in pages.
using outcome = whimbrel_outcome;
// Where a page is; see whimbrel_page.
using page = whimbrel_page;
using statistics = whimbrel_session_stats;

struct options {
  std::uint64_t ram = 0;    // bytes resident and uncompressed; 0: no limit of this kind
  std::uint64_t total = 0;  // bytes of RAM in all; 0: no limit of this kind
  const char* device = "zstd";
};

// A prefetch or migration under way. Destroyed without wait(), it goes on by itself.
class request {
 public:
  request() = default;
  request(request&& other) noexcept : request_(std::exchange(other.request_, {})) {}
  request& operator=(request&& other) noexcept {
    std::swap(request_, other.request_);
    return *this;
  }
  ~request() {
    if (request_.session != nullptr) whimbrel_forget(&request_);
  }
  [[nodiscard]] bool valid() const noexcept { return request_.session != nullptr; }
  [[nodiscard]] bool is_done() const noexcept { return !valid() || whimbrel_is_done(&request_) != 0; }
  // Once; the request is not valid() afterwards.
  outcome wait() {
    outcome result{};
    const whimbrel_request mine = std::exchange(request_, {});
    detail::check(whimbrel_wait(&mine, -1, &result));
    return result;
  }
  // False: not done within that time, and still valid().
  template <class Rep, class Period>
  bool wait_for(std::chrono::duration<Rep, Period> time, outcome* result = nullptr) {
    const auto milliseconds = std::chrono::ceil<std::chrono::milliseconds>(time).count();
    const int done = whimbrel_wait(&request_, static_cast<int>(milliseconds), result);
    if (done == -EAGAIN) return false;
    request_ = {};
    detail::check(done);
    return true;
  }

 private:
  friend class session;
  explicit request(const whimbrel_request& made) noexcept : request_(made) {}
  whimbrel_request request_{};
};

// Keeps a range at home for its lifetime.
class pin_guard {
 public:
  pin_guard(pin_guard&& other) noexcept
      : session_(std::exchange(other.session_, nullptr)),
        start_(other.start_),
        bytes_(other.bytes_),
        happened(other.happened) {}
  pin_guard& operator=(pin_guard&&) = delete;
  ~pin_guard() {
    if (session_ != nullptr) (void)whimbrel_unpin(session_, start_, bytes_);
  }

 private:
  friend class session;
  pin_guard(whimbrel_session* session, const void* start, std::size_t bytes, const outcome& result) noexcept
      : session_(session), start_(start), bytes_(bytes), happened(result) {}
  whimbrel_session* session_;
  const void* start_;
  std::size_t bytes_;

 public:
  const outcome happened;
};

class session {
 public:
  explicit session(const options& wanted) {
    const whimbrel_session_options plain{sizeof plain, wanted.ram, wanted.total, wanted.device, 0};
    detail::check(whimbrel_session_open(&plain, &session_));
  }
  session(session&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}
  session& operator=(session&& other) noexcept {
    std::swap(session_, other.session_);
    return *this;
  }
  // Memory that is still there would be lost, silently.
  ~session() {
    if (whimbrel_session_close(session_) == 0) return;
    std::fprintf(stderr, "whimbrel: a session is destroyed before its memory: %s\n", whimbrel_error());
    std::abort();
  }
  [[nodiscard]] whimbrel_session* handle() const noexcept { return session_; }

  // ---- memory ----
  [[nodiscard]] void* allocate(std::size_t bytes) {
    void* memory = nullptr;
    detail::check(whimbrel_allocate(session_, bytes, &memory));
    return memory;
  }
  void free(void* memory) noexcept { whimbrel_free(session_, memory); }
  // The whole pages of memory that the program has; release() the same span before it is freed.
  template <class T>
  void adopt(std::span<T> memory) {
    detail::check(whimbrel_adopt(session_, memory.data(), memory.size_bytes()));
  }
  template <class T>
  void release(std::span<T> memory) {
    detail::check(whimbrel_release(session_, memory.data(), memory.size_bytes()));
  }

  // ---- hints; an error only where the range is none of the session's, or as said ----
  template <class T>
  outcome migrate(std::span<T> range) {
    return call(whimbrel_migrate, range);
  }
  template <class T>
  outcome prefetch(std::span<T> range) {
    return call(whimbrel_prefetch, range);
  }
  template <class T>
  [[nodiscard]] request migrate_async(std::span<T> range) {
    return start(whimbrel_migrate_start, range);
  }
  template <class T>
  [[nodiscard]] request prefetch_async(std::span<T> range) {
    return start(whimbrel_prefetch_start, range);
  }
  // Error with ENOMEM: no room under the budget.
  template <class T>
  [[nodiscard]] pin_guard pin(std::span<T> range) {
    const outcome result = call(whimbrel_pin, range);
    return {session_, range.data(), range.size_bytes(), result};
  }
  template <class T>
  void discard(std::span<T> range) {
    detail::check(whimbrel_discard(session_, range.data(), range.size_bytes()));
  }
  template <class T>
  void advise(std::span<T> range, advice what) {
    detail::check(whimbrel_advise(session_, range.data(), range.size_bytes(), static_cast<whimbrel_advice>(what)));
  }
  // False: the session has another device.
  template <class T>
  bool prefer_device(std::span<T> range, const std::string& device) {
    const int result = whimbrel_prefer_device(session_, range.data(), range.size_bytes(), device.c_str());
    if (result == -EOPNOTSUPP) return false;
    detail::check(result);
    return true;
  }
  template <class T>
  [[nodiscard]] std::vector<page> residency(std::span<T> range) const {
    const long count = detail::check(whimbrel_residency(session_, range.data(), range.size_bytes(), nullptr, 0));
    std::vector<page> pages(static_cast<std::size_t>(count));
    detail::check(whimbrel_residency(session_, range.data(), range.size_bytes(), pages.data(), pages.size()));
    return pages;
  }

  // ---- the whole ----
  void set_budget(std::uint64_t ram, std::uint64_t total = 0) {
    detail::check(whimbrel_session_set_budget(session_, ram, total));
  }
  // What is away moves there in the background: stats().leaving_pages.
  void set_device(const std::string& device) { detail::check(whimbrel_session_set_device(session_, device.c_str())); }
  [[nodiscard]] statistics stats() const {
    statistics now{};
    now.struct_size = sizeof now;
    detail::check(whimbrel_session_get_stats(session_, &now));
    return now;
  }
  // By which means memory is managed: "userfaultfd", ..., "guarded arenas". Static text.
  [[nodiscard]] const char* rung() const { return whimbrel_session_rung(session_); }
  // The last thing the engine had to tell a person; empty: nothing so far.
  [[nodiscard]] std::string notice() const {
    char text[256] = "";
    detail::check(whimbrel_session_notice(session_, text, sizeof text));
    return text;
  }

 private:
  template <class T>
  outcome call(int (*hint)(whimbrel_session*, const void*, std::size_t, outcome*), std::span<T> range) {
    outcome result{};
    detail::check(hint(session_, range.data(), range.size_bytes(), &result));
    return result;
  }
  template <class T>
  request start(int (*hint)(whimbrel_session*, const void*, std::size_t, whimbrel_request*), std::span<T> range) {
    whimbrel_request made{};
    detail::check(hint(session_, range.data(), range.size_bytes(), &made));
    return request(made);
  }
  whimbrel_session* session_ = nullptr;
};

// A fixed number of zeroed T. What is never touched costs nothing, so only types that may begin as zeros.
template <class T>
requires std::is_trivially_copyable_v<T> && std::is_trivially_default_constructible_v<T>
class array {
 public:
  using value_type = T;
  array() = default;
  array(session& owner, std::size_t count) : session_(owner.handle()), size_(count) {
    if (count > SIZE_MAX / sizeof(T)) throw std::bad_array_new_length();
    void* memory = nullptr;
    if (count != 0) detail::check(whimbrel_allocate(session_, count * sizeof(T), &memory));
    data_ = static_cast<T*>(memory);
  }
  array(array&& other) noexcept
      : session_(other.session_), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  array& operator=(array&& other) noexcept {
    std::swap(session_, other.session_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~array() {
    if (data_ != nullptr) whimbrel_free(session_, data_);
  }

  [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  [[nodiscard]] T* data() noexcept { return data_; }
  [[nodiscard]] const T* data() const noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] T* begin() noexcept { return data_; }
  [[nodiscard]] T* end() noexcept { return data_ + size_; }
  [[nodiscard]] const T* begin() const noexcept { return data_; }
  [[nodiscard]] const T* end() const noexcept { return data_ + size_; }
  [[nodiscard]] std::span<T> span() noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<const T> span() const noexcept { return {data_, size_}; }
  [[nodiscard]] std::span<T> subspan(std::size_t from, std::size_t count = std::dynamic_extent) noexcept {
    return span().subspan(from, count);
  }

 private:
  whimbrel_session* session_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// For containers of large blocks (std::vector): every allocation takes whole pages.
template <class T>
class allocator {
 public:
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;

  explicit allocator(session& owner) noexcept : session_(owner.handle()) {}
  template <class U>
  allocator(const allocator<U>& other) noexcept : session_(other.handle()) {}

  [[nodiscard]] T* allocate(std::size_t count) {
    void* memory = nullptr;
    if (count > SIZE_MAX / sizeof(T)) throw std::bad_array_new_length();
    if (whimbrel_allocate(session_, count == 0 ? 1 : count * sizeof(T), &memory) < 0) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) noexcept { whimbrel_free(session_, memory); }
  [[nodiscard]] whimbrel_session* handle() const noexcept { return session_; }
  template <class U>
  bool operator==(const allocator<U>& other) const noexcept {
    return session_ == other.handle();
  }

 private:
  whimbrel_session* session_;
};

// Every allocation takes whole pages: for containers of small nodes put a std::pmr::unsynchronized_pool_resource on
// top.
class memory_resource final : public std::pmr::memory_resource {
 public:
  explicit memory_resource(session& owner) noexcept : session_(owner.handle()) {}

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    void* memory = nullptr;
    if (alignment > 4096 || whimbrel_allocate(session_, bytes == 0 ? 1 : bytes, &memory) < 0) throw std::bad_alloc();
    return memory;
  }
  void do_deallocate(void* memory, std::size_t, std::size_t) override { whimbrel_free(session_, memory); }
  [[nodiscard]] bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    const auto* same = dynamic_cast<const memory_resource*>(&other);
    return same != nullptr && same->session_ == session_;
  }
  whimbrel_session* session_;
};

}  // namespace whimbrel
#endif
