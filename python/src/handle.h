// Handle: a session that Python objects share: sessions, arrays, requests, NumPy handlers. It is closed with the last
// of them, so memory never outlives it.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "whimbrel/whimbrel.h"

namespace whimbrel::python {

// Raises whimbrel.Error, an OSError, with what whimbrel_error() says. ENOMEM becomes MemoryError when `memory` is set.
[[noreturn]] void raise_error(int negative_errno, bool memory = false);

class Handle {
 public:
  explicit Handle(const whimbrel_session_options& options);
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  [[nodiscard]] whimbrel_session* get() const noexcept { return session_; }

 private:
  whimbrel_session* session_ = nullptr;
};
using SharedHandle = std::shared_ptr<Handle>;

// Has NumPy take memory of this session for every array of `least` bytes and more that it makes from now on in this
// context (NEP 49), and keep `keeper` as long as one of these arrays lives. Returns what it used before, for
// set_numpy_handler(). Needs NumPy 1.22.
[[nodiscard]] pybind11::object use_for_numpy(const SharedHandle& handle, std::size_t least, pybind11::object keeper);
pybind11::object set_numpy_handler(const pybind11::object& handler);

}  // namespace whimbrel::python
