# Sourced by ./demo and ./test, from the root of the tree.
# shellcheck shell=bash

# build_preset PRESET [NINJA_TARGET...]: configures and builds build/PRESET; everything when no target is given.
# Output goes to build/PRESET.log and is shown when something fails.
build_preset() {
  local preset=$1
  shift
  local log=build/$preset.log
  mkdir -p build
  echo "building $preset (log: $log)"
  if ! cmake --preset "$preset" >"$log" 2>&1 </dev/null; then
    tail -n 40 "$log" >&2
    echo "cannot configure the preset $preset; the lines above say why" >&2
    return 1
  fi
  if ! cmake --build "build/$preset" --parallel "$(nproc)" ${1+--target "$@"} >>"$log" 2>&1 </dev/null; then
    grep -n -E 'error|FAILED|undefined reference' "$log" | head -n 40 >&2 || tail -n 40 "$log" >&2
    echo "cannot build the preset $preset; all of it: $log" >&2
    return 1
  fi
}
