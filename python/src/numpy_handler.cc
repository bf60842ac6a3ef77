// NumPy's allocator handler (NEP 49) over a session.
//
// NumPy's C interface is a table of pointers in a capsule; the three entries and the two structures used here have not
// changed since NumPy 1.22. So nothing of NumPy is needed to build this.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "handle.h"

namespace py = pybind11;

namespace whimbrel::python {
namespace {

struct DataMemAllocator {
  void* ctx;
  void* (*malloc)(void* ctx, std::size_t size);
  void* (*calloc)(void* ctx, std::size_t count, std::size_t size);
  void* (*realloc)(void* ctx, void* memory, std::size_t size);
  void (*free)(void* ctx, void* memory, std::size_t size);
};
struct DataMemHandler {
  char name[127];
  std::uint8_t version;
  DataMemAllocator allocator;
};

constexpr const char* kCapsule = "mem_handler";
constexpr int kSetHandler = 304;

// What a capsule owns: arrays hold the capsule of the handler that made them, so the session lives as long as they do.
struct Owner {
  DataMemHandler handler;
  SharedHandle session;
  std::size_t least;
  py::object keeper;
};

Owner& owner_of(void* ctx) { return *static_cast<Owner*>(ctx); }

// Pieces of the session begin at pages, others almost never do.
bool is_ours(const Owner& owner, void* memory) {
  return reinterpret_cast<std::uintptr_t>(memory) % 4096 == 0 &&
         whimbrel_allocated_size(owner.session->get(), memory) != 0;
}

void* take(void* ctx, std::size_t bytes, bool zeroed) {
  const Owner& owner = owner_of(ctx);
  if (bytes < owner.least) return zeroed ? std::calloc(1, bytes == 0 ? 1 : bytes) : std::malloc(bytes == 0 ? 1 : bytes);
  void* memory = nullptr;
  return whimbrel_allocate(owner.session->get(), bytes, &memory) == 0 ? memory : nullptr;
}

void* take_uninitialised(void* ctx, std::size_t bytes) { return take(ctx, bytes, false); }

void* take_zeroed(void* ctx, std::size_t count, std::size_t size) {
  std::size_t bytes = 0;
  return __builtin_mul_overflow(count, size, &bytes) ? nullptr : take(ctx, bytes, true);
}

void give(void* ctx, void* memory, std::size_t) {
  const Owner& owner = owner_of(ctx);
  if (is_ours(owner, memory))
    whimbrel_free(owner.session->get(), memory);
  else
    std::free(memory);
}

void* resize(void* ctx, void* memory, std::size_t bytes) {
  const Owner& owner = owner_of(ctx);
  if (memory == nullptr) return take(ctx, bytes, false);
  if (!is_ours(owner, memory)) return std::realloc(memory, bytes == 0 ? 1 : bytes);
  const std::size_t old = whimbrel_allocated_size(owner.session->get(), memory);
  if (bytes <= old && bytes > old / 2) return memory;
  void* const grown = take(ctx, bytes, false);
  if (grown == nullptr) return nullptr;
  std::memcpy(grown, memory, old < bytes ? old : bytes);
  whimbrel_free(owner.session->get(), memory);
  return grown;
}

void destroy(PyObject* capsule) {
  auto* handler = static_cast<DataMemHandler*>(PyCapsule_GetPointer(capsule, kCapsule));
  delete static_cast<Owner*>(handler->allocator.ctx);
}

void** numpy_table() {
  const py::object version = py::module_::import("numpy").attr("__version__");
  const bool first = version.cast<std::string>().starts_with("1.");
  const py::module_ core =
      py::module_::import(first ? "numpy.core._multiarray_umath" : "numpy._core._multiarray_umath");
  const py::capsule table = core.attr("_ARRAY_API");
  if (first && !py::hasattr(py::module_::import("numpy.core.multiarray"), "get_handler_name")) {
    throw py::import_error("NumPy 1.22 or newer is needed for its allocator handlers");
  }
  return static_cast<void**>(table.get_pointer());
}

}  // namespace

py::object set_numpy_handler(const py::object& handler) {
  using SetHandler = PyObject* (*)(PyObject*);
  const auto set = reinterpret_cast<SetHandler>(numpy_table()[kSetHandler]);
  PyObject* const before = set(handler.is_none() ? nullptr : handler.ptr());
  if (before == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(before);
}

py::object use_for_numpy(const SharedHandle& session, std::size_t least, py::object keeper) {
  auto owner = std::make_unique<Owner>();
  owner->session = session;
  owner->least = least == 0 ? 1 : least;
  owner->keeper = std::move(keeper);
  owner->handler = {"whimbrel", 1, {owner.get(), take_uninitialised, take_zeroed, resize, give}};
  PyObject* const capsule = PyCapsule_New(&owner->handler, kCapsule, destroy);
  if (capsule == nullptr) throw py::error_already_set();
  (void)owner.release();
  return set_numpy_handler(py::reinterpret_steal<py::object>(capsule));
}

}  // namespace whimbrel::python
