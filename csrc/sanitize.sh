#!/usr/bin/env bash
# The core under the address and undefined-behaviour sanitizers: its C tests, then the Python tests of
# the extension over a sanitised build of it. Argument: a virtual environment with pip; what is missing
# in it (cmake, ninja, the test extra) is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$(cd "${1:-.venv}" && pwd)"
python="$venv/bin/python"
build="$PWD/build"

"$python" -m pip install --quiet 'cmake>=3.26' 'ninja>=1.11' 'scikit-build-core>=0.11' 'cffi>=2.1'
export PATH="$venv/bin:$PATH"

echo "-- C tests"
(cd csrc && cmake --preset sanitize -G Ninja >"$build.log" 2>&1 || { cat "$build.log"; exit 1; })
rm -f "$build.log"
cmake --build "$build/c-sanitize" --parallel
ctest --test-dir "$build/c-sanitize" --output-on-failure

echo "-- the extension"
"$python" -m pip install --quiet --no-build-isolation --no-deps --upgrade --target "$build/sanitized" \
    -Cbuild-dir="$build/sanitized-build" -Ccmake.define.VTX_SANITIZE=ON .
# An editable installation in the environment would win over PYTHONPATH: put it aside, and make sure.
run='
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
import pytest, vtx._core
assert "/build/sanitized/" in vtx._core.__file__, vtx._core.__file__
sys.exit(pytest.main(sys.argv[1:]))
'
# The sanitizers' runtimes must come first; what Python itself keeps until exit is not looked for.
cc="${CC:-gcc}"
LD_PRELOAD="$("$cc" -print-file-name=libasan.so) $("$cc" -print-file-name=libubsan.so)" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    PYTHONPATH="$build/sanitized:$PWD" "$python" -P -c "$run" -q -p no:cacheprovider \
    tests/core tests/tlb/test_simulate.py tests/streams/test_binary.py tests/streams/test_lackey.py \
    tests/machine/test_memory.py tests/machine/test_mmu_*.py tests/machine/test_paging.py
