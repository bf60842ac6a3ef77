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

// What the language would bring from its run-time library: exceptions, which the engine has not, and through them the
// program's heap, its standard error and thread-local state. Never called.
extern "C" {
void __cxa_pure_virtual() { CHECK(false, "a pure virtual function was called"); }
int __gxx_personality_v0() { CHECK(false, "an exception came through the engine"); }
}
