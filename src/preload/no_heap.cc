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

namespace std {
void __throw_out_of_range_fmt(const char*, ...) { CHECK(false, "a range check of the standard library failed"); }
}  // namespace std

// Descriptions of classes for dynamic_cast and typeid, which the engine does not use, refer to these by address only.
extern "C" {
extern void* const kClassInfo[16] __asm__("_ZTVN10__cxxabiv117__class_type_infoE");
extern void* const kSingleInfo[16] __asm__("_ZTVN10__cxxabiv120__si_class_type_infoE");
extern void* const kMultipleInfo[16] __asm__("_ZTVN10__cxxabiv121__vmi_class_type_infoE");
void* const kClassInfo[16] = {};
void* const kSingleInfo[16] = {};
void* const kMultipleInfo[16] = {};
}
