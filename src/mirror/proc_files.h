// What a program reads about itself in /proc: pages on a device are swapped there (MA-15) and can be read (CF-01).
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdio>

namespace whimbrel::mirror {

// A file of /proc whose answers have to be put right.
[[nodiscard]] bool is_own_pagemap(const char* path) noexcept;
void note_pagemap(int fd) noexcept;

// read (at < 0) and pread. A count or a negative errno.
[[nodiscard]] long read_file(int fd, void* buffer, std::size_t bytes, off_t at) noexcept;

// The pagemap as a stream, since stdio reads past our read(). Null: errno is set.
[[nodiscard]] std::FILE* open_pagemap_stream(const char* path, const char* mode) noexcept;

}  // namespace whimbrel::mirror
