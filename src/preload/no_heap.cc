// The engine has no heap: the program's may be away, or locked by the thread whose fault is being served. Whoever
// brings in code that allocates stops here, in the first test that reaches it, instead of in somebody's program.
#include <cstddef>
#include <new>

#include "base/check.h"

void* operator new(std::size_t) { CHECK(false, "the engine allocates from the program's heap"); }
void* operator new[](std::size_t) { CHECK(false, "the engine allocates from the program's heap"); }
void* operator new(std::size_t, std::align_val_t) { CHECK(false, "the engine allocates from the program's heap"); }
void operator delete(void*) noexcept { CHECK(false, "the engine frees to the program's heap"); }
void operator delete[](void*) noexcept { CHECK(false, "the engine frees to the program's heap"); }
void operator delete(void*, std::size_t) noexcept { CHECK(false, "the engine frees to the program's heap"); }
void operator delete[](void*, std::size_t) noexcept { CHECK(false, "the engine frees to the program's heap"); }
void operator delete(void*, std::align_val_t) noexcept { CHECK(false, "the engine frees to the program's heap"); }
void operator delete(void*, std::size_t, std::align_val_t) noexcept {
  CHECK(false, "the engine frees to the program's heap");
}
