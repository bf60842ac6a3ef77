// Starts the device process, and tells it when it is not needed any more.
//
// It is nobody's child: who waits for any child does not meet it. It ends by itself once stop() was called, or this
// process has ended, and the last engine is gone; signals that end programs do not end it, for processes may still
// have their pages there.
#pragma once

#include <string>

namespace whimbrel::device_process {

class DeviceProcess {
 public:
  DeviceProcess() = default;
  DeviceProcess(DeviceProcess&& other) noexcept;
  DeviceProcess& operator=(DeviceProcess&& other) noexcept;
  ~DeviceProcess() { stop(); }

  // False: `problem` says why, `advice` what to do. `quiet`: what happens to connections is not told on standard error.
  [[nodiscard]] bool start(bool quiet, std::string* problem, std::string* advice);
  // Waits until it has ended, some seconds at most, unless engines still use it. A forked child's copy does nothing.
  void stop();
  // It was started and has ended without being told to.
  [[nodiscard]] bool has_ended() const;
  [[nodiscard]] bool is_running() const { return lifeline_ >= 0; }
  // For engines: DeviceEnvironment::device_process. Who knows it may use the device process.
  [[nodiscard]] const std::string& address() const { return address_; }

 private:
  int lifeline_ = -1;
  int owner_ = 0;  // the process that started it
  std::string address_;
};

}  // namespace whimbrel::device_process
