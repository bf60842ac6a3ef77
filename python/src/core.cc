// whimbrel._core: sessions for Python, by addresses. What people use is whimbrel/__init__.py.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>

#include "handle.h"

namespace py = pybind11;

namespace whimbrel::python {
namespace {

PyObject* g_error = nullptr;  // the exception class; the module holds it

const void* pointer(std::uintptr_t address) { return reinterpret_cast<const void*>(address); }

class Request {
 public:
  Request(SharedHandle session, const whimbrel_request& request) : session_(std::move(session)), request_(request) {}
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  ~Request() {
    if (!taken_) whimbrel_forget(&request_);
  }
  [[nodiscard]] bool done() const { return taken_ || whimbrel_is_done(&request_) != 0; }
  // None: not within that time.
  std::optional<whimbrel_outcome> wait(std::optional<double> seconds) {
    if (taken_) return outcome_;
    int result = 0;
    {
      const py::gil_scoped_release others_go_on;
      result = whimbrel_wait(&request_, seconds ? static_cast<int>(*seconds * 1000) : -1, &outcome_);
    }
    if (result == -EAGAIN) return std::nullopt;
    taken_ = true;
    if (result < 0) raise_error(result);
    return outcome_;
  }

 private:
  SharedHandle session_;
  whimbrel_request request_;
  whimbrel_outcome outcome_{};
  bool taken_ = false;
};

class Session {
 public:
  Session(std::uint64_t ram, std::uint64_t total, const std::string& device) {
    whimbrel_session_options options{};
    options.struct_size = sizeof options;
    options.ram_bytes = ram;
    options.total_bytes = total;
    options.device = device.c_str();
    session_ = std::make_shared<Handle>(options);
  }
  [[nodiscard]] const SharedHandle& handle() const {
    if (session_ == nullptr) throw py::value_error("the session is closed");
    return session_;
  }
  [[nodiscard]] whimbrel_session* get() const { return handle()->get(); }
  void close() { session_.reset(); }
  [[nodiscard]] bool closed() const { return session_ == nullptr; }

  [[nodiscard]] py::array_t<std::uint8_t> allocate(std::size_t bytes, py::object keeper) {
    void* memory = nullptr;
    const SharedHandle session = handle();
    int result = 0;
    {
      const py::gil_scoped_release others_go_on;
      result = whimbrel_allocate(session->get(), bytes, &memory);
    }
    if (result < 0) raise_error(result, true);
    struct Piece {
      SharedHandle session;
      void* memory;
      py::object keeper;
    };
    const py::capsule owner(new Piece{session, memory, std::move(keeper)}, [](void* piece_pointer) {
      const std::unique_ptr<Piece> piece(static_cast<Piece*>(piece_pointer));
      whimbrel_free(piece->session->get(), piece->memory);
    });
    return {{bytes}, {std::size_t{1}}, static_cast<std::uint8_t*>(memory), owner};
  }

  using Hint = int (*)(whimbrel_session*, const void*, std::size_t, whimbrel_outcome*);
  template <Hint kHint>
  whimbrel_outcome hint(std::uintptr_t address, std::size_t bytes) {
    whimbrel_outcome outcome{};
    const SharedHandle session = handle();
    call([&] { return kHint(session->get(), pointer(address), bytes, &outcome); });
    return outcome;
  }
  using Start = int (*)(whimbrel_session*, const void*, std::size_t, whimbrel_request*);
  template <Start kStart>
  std::unique_ptr<Request> start(std::uintptr_t address, std::size_t bytes) {
    whimbrel_request request{};
    const SharedHandle session = handle();
    call([&] { return kStart(session->get(), pointer(address), bytes, &request); });
    return std::make_unique<Request>(session, request);
  }
  void unpin(std::uintptr_t address, std::size_t bytes) {
    call([&, s = get()] { return whimbrel_unpin(s, pointer(address), bytes); });
  }
  void discard(std::uintptr_t address, std::size_t bytes) {
    call([&, s = get()] { return whimbrel_discard(s, const_cast<void*>(pointer(address)), bytes); });
  }
  void advise(std::uintptr_t address, std::size_t bytes, int advice) {
    call([&, s = get()] { return whimbrel_advise(s, pointer(address), bytes, static_cast<whimbrel_advice>(advice)); });
  }
  void adopt(std::uintptr_t address, std::size_t bytes) {
    call([&, s = get()] { return whimbrel_adopt(s, const_cast<void*>(pointer(address)), bytes); });
  }
  void release(std::uintptr_t address, std::size_t bytes) {
    call([&, s = get()] { return whimbrel_release(s, const_cast<void*>(pointer(address)), bytes); });
  }
  void set_budget(std::uint64_t ram, std::uint64_t total) {
    call([&, s = get()] { return whimbrel_session_set_budget(s, ram, total); });
  }
  void set_device(const std::string& device) {
    call([&, s = get()] { return whimbrel_session_set_device(s, device.c_str()); });
  }
  [[nodiscard]] bool owns(std::uintptr_t address) const {
    return session_ != nullptr && whimbrel_residency(get(), pointer(address), 1, nullptr, 0) >= 0;
  }
  [[nodiscard]] py::array_t<whimbrel_page> residency(std::uintptr_t address, std::size_t bytes) {
    const long count = whimbrel_residency(get(), pointer(address), bytes, nullptr, 0);
    if (count < 0) raise_error(static_cast<int>(count));
    py::array_t<whimbrel_page> pages(count);
    whimbrel_page* const out = pages.mutable_data();
    call([&, s = get()] {
      return static_cast<int>(
          std::min(0L, whimbrel_residency(s, pointer(address), bytes, out, static_cast<std::size_t>(count))));
    });
    return pages;
  }
  [[nodiscard]] py::dict stats() const {
    whimbrel_session_stats s{};
    s.struct_size = sizeof s;
    if (const int result = whimbrel_session_get_stats(get(), &s); result < 0) raise_error(result);
    using namespace py::literals;
    return py::dict("ram_limit_bytes"_a = s.ram_limit_bytes, "total_limit_bytes"_a = s.total_limit_bytes,
                    "allocated_bytes"_a = s.allocated_bytes, "adopted_bytes"_a = s.adopted_bytes,
                    "resident_pages"_a = s.resident_pages, "resident_limit_pages"_a = s.resident_limit_pages,
                    "peak_resident_pages"_a = s.peak_resident_pages, "stored_pages"_a = s.stored_pages,
                    "compressed_bytes"_a = s.compressed_bytes, "held_bytes"_a = s.held_bytes,
                    "total_bytes"_a = s.total_bytes, "pages_out"_a = s.pages_out, "pages_home"_a = s.pages_home,
                    "faults"_a = s.faults, "fresh_faults"_a = s.fresh_faults, "wait_ns"_a = s.wait_ns,
                    "over_limit"_a = s.over_limit, "refused_pages"_a = s.refused_pages,
                    "device_errors"_a = s.device_errors, "load_errors"_a = s.load_errors, "leaving_pages"_a = s.leaving_pages);
  }
  [[nodiscard]] std::string rung() const { return whimbrel_session_rung(get()); }
  [[nodiscard]] std::string notice() const {
    char text[256] = "";
    if (const int result = whimbrel_session_notice(get(), text, sizeof text); result < 0) raise_error(result);
    return text;
  }

 private:
  // Other Python threads go on while the engine works.
  template <class Call>
  static void call(Call call) {
    int result = 0;
    {
      const py::gil_scoped_release others_go_on;
      result = call();
    }
    if (result < 0) raise_error(result);
  }
  SharedHandle session_;
};

}  // namespace

void raise_error(int negative_errno, bool memory) {
  const std::string text = whimbrel_error();
  if (memory && negative_errno == -ENOMEM) {
    PyErr_SetString(PyExc_MemoryError, text.c_str());
  } else {
    PyErr_SetObject(g_error, py::make_tuple(-negative_errno, text).ptr());
  }
  throw py::error_already_set();
}

Handle::Handle(const whimbrel_session_options& options) {
  int result = 0;
  {
    const py::gil_scoped_release others_go_on;
    result = whimbrel_session_open(&options, &session_);
  }
  if (result < 0) raise_error(result);
}

Handle::~Handle() { (void)whimbrel_session_close(session_); }

PYBIND11_MODULE(_core, module) {
  PYBIND11_NUMPY_DTYPE(whimbrel_page, where, order, rights, flags);
  g_error = PyErr_NewExceptionWithDoc(
      "whimbrel.Error", "What whimbrel refused, as an OSError with errno and a sentence that says what to do next.",
      PyExc_OSError, nullptr);
  module.add_object("Error", g_error);
  py::class_<whimbrel_outcome>(module, "Outcome")
      .def_readonly("asked", &whimbrel_outcome::asked)
      .def_readonly("moved", &whimbrel_outcome::moved)
      .def_readonly("already", &whimbrel_outcome::already)
      .def_readonly("empty", &whimbrel_outcome::empty)
      .def_readonly("refused", &whimbrel_outcome::refused)
      .def_readonly("reasons", &whimbrel_outcome::reasons);
  py::class_<Request>(module, "Request")
      .def("done", &Request::done)
      .def("wait", &Request::wait, py::arg("seconds") = py::none());
  py::class_<Session>(module, "Session")
      .def(py::init<std::uint64_t, std::uint64_t, const std::string&>(), py::arg("ram"), py::arg("total"),
           py::arg("device"))
      .def("close", &Session::close)
      .def_property_readonly("closed", &Session::closed)
      .def("allocate", &Session::allocate, py::arg("bytes"), py::arg("keeper"))
      .def("migrate", &Session::hint<whimbrel_migrate>)
      .def("prefetch", &Session::hint<whimbrel_prefetch>)
      .def("pin", &Session::hint<whimbrel_pin>)
      .def("unpin", &Session::unpin)
      .def("start_migrate", &Session::start<whimbrel_migrate_start>)
      .def("start_prefetch", &Session::start<whimbrel_prefetch_start>)
      .def("discard", &Session::discard)
      .def("advise", &Session::advise)
      .def("adopt", &Session::adopt)
      .def("release", &Session::release)
      .def("set_device", &Session::set_device, py::arg("device"))
      .def("set_budget", &Session::set_budget, py::arg("ram"), py::arg("total"))
      .def("owns", &Session::owns)
      .def("residency", &Session::residency)
      .def("stats", &Session::stats)
      .def("notice", &Session::notice)
      .def("rung", &Session::rung)
      .def("use_for_numpy", [](const Session& session, std::size_t least, py::object keeper) {
        return use_for_numpy(session.handle(), least, std::move(keeper));
      });
  module.def("set_numpy_handler", &set_numpy_handler);
}

}  // namespace whimbrel::python
