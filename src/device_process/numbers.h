// What the device process and who starts it agree on.
#pragma once

namespace whimbrel::device_process {

inline constexpr int kListenerNumber = 3;
// A stream socket: 16 bytes of token come in, kReady goes out. Its end means that no more engines will come but those of
// processes that are there; kStaying goes out when some are.
inline constexpr int kLifelineNumber = 4;
inline constexpr char kReady = 'r';
inline constexpr char kStaying = 's';

}  // namespace whimbrel::device_process
