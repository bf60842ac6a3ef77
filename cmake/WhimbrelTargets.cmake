# How every target of the project is built: one place for flags, so that layers cannot drift apart.

set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_CXX_VISIBILITY_PRESET hidden)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_VISIBILITY_INLINES_HIDDEN ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

find_program(WHIMBREL_CCACHE ccache)
if(WHIMBREL_CCACHE)
  # Without these ccache does not keep what was compiled with a precompiled header.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${WHIMBREL_CCACHE})
  set(CMAKE_C_COMPILER_LAUNCHER ${WHIMBREL_CCACHE})
endif()

set(WHIMBREL_SANITIZE "" CACHE STRING "Sanitizers for the whole build, e.g. 'thread' or 'address,undefined'")

# scripts/coverage: children of tests that end by _exit() write their counters first.
set(WHIMBREL_COUNTERS_AT_EXIT "" CACHE FILEPATH "Source that makes them do so")

add_library(whimbrel_flags INTERFACE)
target_compile_options(whimbrel_flags INTERFACE
  -Wall -Wextra -Wpedantic -Werror -Wshadow -Wconversion -Wno-sign-conversion
  $<$<COMPILE_LANGUAGE:CXX>:-Wnon-virtual-dtor -Woverloaded-virtual>
  # The library's own std::stable_sort uses what clang knows to be deprecated.
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety -Wno-gnu-zero-variadic-macro-arguments -Wno-deprecated-declarations>)
# scripts/mutate: copies of sources and headers with changes that can be switched on; they stand before the originals.
set(WHIMBREL_MUTANTS "" CACHE PATH "Folder of mutated sources")
if(WHIMBREL_MUTANTS)
  target_include_directories(whimbrel_flags INTERFACE ${WHIMBREL_MUTANTS})
  target_compile_options(whimbrel_flags INTERFACE -w)
endif()
target_include_directories(whimbrel_flags INTERFACE ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR})
if(WHIMBREL_SANITIZE)
  target_compile_options(whimbrel_flags INTERFACE -fsanitize=${WHIMBREL_SANITIZE} -fno-omit-frame-pointer -g)
  target_link_options(whimbrel_flags INTERFACE -fsanitize=${WHIMBREL_SANITIZE})
endif()

# Code that may run on the fault path: no exceptions, thread-locals resolved at load.
add_library(whimbrel_engine_flags INTERFACE)
target_link_libraries(whimbrel_engine_flags INTERFACE whimbrel_flags)
target_compile_options(whimbrel_engine_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions -fno-threadsafe-statics> -ftls-model=initial-exec)

# whimbrel_layer(NAME SOURCES ... LINKS ...): one layer of the engine as a static library `whimbrel_NAME`.
function(whimbrel_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  if(WHIMBREL_MUTANTS)
    foreach(source IN LISTS ARG_SOURCES)
      if(EXISTS ${WHIMBREL_MUTANTS}/${name}/${source})
        list(REMOVE_ITEM ARG_SOURCES ${source})
        list(APPEND ARG_SOURCES ${WHIMBREL_MUTANTS}/${name}/${source})
      endif()
    endforeach()
  endif()
  if(ARG_SOURCES)
    add_library(whimbrel_${name} STATIC ${ARG_SOURCES})
    target_link_libraries(whimbrel_${name} PRIVATE whimbrel_engine_flags PUBLIC ${ARG_LINKS})
  else()
    add_library(whimbrel_${name} INTERFACE)
    target_link_libraries(whimbrel_${name} INTERFACE ${ARG_LINKS})
  endif()
endfunction()

# Tests spend their time in what they test: their own code is optimized less, which takes a quarter off what it costs to compile.
function(whimbrel_compile_as_test target)
  target_compile_options(${target} PRIVATE $<$<CONFIG:RelWithDebInfo>:-O1>)
endfunction()

# gtest.h is half of what most tests cost to compile: it is compiled once. An executable, since tests are: the compiler
# takes a precompiled header only with the same code model.
function(whimbrel_precompile_gtest)
  file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/gtest_header.cc CONTENT "int main() { return 0; }\n")
  add_executable(whimbrel_gtest_header ${CMAKE_BINARY_DIR}/gtest_header.cc)
  target_link_libraries(whimbrel_gtest_header PRIVATE whimbrel_flags GTest::gtest)
  target_precompile_headers(whimbrel_gtest_header PRIVATE <gtest/gtest.h>)
  whimbrel_compile_as_test(whimbrel_gtest_header)
endfunction()

# With the same optimization as the header was compiled with: the compiler takes no other, or breaks.
function(whimbrel_use_gtest_header target)
  target_precompile_headers(${target} REUSE_FROM whimbrel_gtest_header)
  whimbrel_compile_as_test(${target})
endfunction()

# whimbrel_test(NAME SOURCES ... LINKS ... [LABELS ...] [TIMEOUT s] [ARGS ...]): a GoogleTest program, one ctest entry.
# Labels: unit (default), live (needs the real kernel), programs, slow.
function(whimbrel_test name)
  if(NOT WHIMBREL_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINKS;LABELS;ARGS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${WHIMBREL_COUNTERS_AT_EXIT})
  target_link_libraries(${name} PRIVATE whimbrel_flags ${ARG_LINKS} GTest::gtest GTest::gtest_main)
  whimbrel_use_gtest_header(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} ${ARG_ARGS})
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  # Leak checking stops every thread and then reads memory itself: with memory away that waits for ever.
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0;TSAN_OPTIONS=halt_on_error=1")
endfunction()
