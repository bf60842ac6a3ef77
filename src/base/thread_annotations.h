// Names for clang's thread-safety analysis; nothing under other compilers.
#pragma once

#if defined(__clang__)
#define WHIMBREL_TSA(x) __attribute__((x))
#else
#define WHIMBREL_TSA(x)
#endif

#define CAPABILITY(x) WHIMBREL_TSA(capability(x))
#define SCOPED_CAPABILITY WHIMBREL_TSA(scoped_lockable)
#define GUARDED_BY(x) WHIMBREL_TSA(guarded_by(x))
#define PT_GUARDED_BY(x) WHIMBREL_TSA(pt_guarded_by(x))
#define REQUIRES(...) WHIMBREL_TSA(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) WHIMBREL_TSA(locks_excluded(__VA_ARGS__))
#define ACQUIRE(...) WHIMBREL_TSA(acquire_capability(__VA_ARGS__))
#define RELEASE(...) WHIMBREL_TSA(release_capability(__VA_ARGS__))
#define TRY_ACQUIRE(...) WHIMBREL_TSA(try_acquire_capability(__VA_ARGS__))
#define ASSERT_CAPABILITY(x) WHIMBREL_TSA(assert_capability(x))
#define RETURN_CAPABILITY(x) WHIMBREL_TSA(lock_returned(x))
#define NO_THREAD_SAFETY_ANALYSIS WHIMBREL_TSA(no_thread_safety_analysis)
