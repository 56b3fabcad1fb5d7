#!/usr/bin/env bash
# One go on a machine with a GPU and perhaps without a network: compile, run every test marked gpu, run the benchmark
# suite, leave the results in $OUT (default out/). A stage that fails is named, and the others still run.
#
#   OUT=out bash benchmarks/gpu_session.sh          # under 10 minutes; nothing is installed but the extension, in place
#
# Needs torch with CUDA, nvcc, cmake, ninja, pybind11, pytest, pytest-benchmark. Wheels that lie in carry/ (hypothesis,
# tyro, tomli-w, ...) are installed first, without a network.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${OUT:-out}" && cd "${OUT:-out}" && pwd)
export PYTHONPATH=$PWD
PYTHON=${PYTHON:-python3}
failed=()

stage() { # stage NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS
    shift 2
    if timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; then
        echo "$name: ok, $((SECONDS - started)) s"
    else
        failed+=("$name")
        echo "$name: FAILED or out of time after $((SECONDS - started)) s; last lines:"
        tail -n 15 "$OUT/$name.log"
    fi
}

if compgen -G "carry/*.whl" >/dev/null; then
    stage wheels 60 "$PYTHON" -m pip install --no-index --no-deps carry/*.whl
fi
# The assembler bundled with older Tritons miscompiles some wgmma kernels; the toolkit's own is newer.
if [ -x /usr/local/cuda/bin/ptxas ]; then export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas; fi
stage build 120 env SETR_FAST_NATIVE=require "$PYTHON" setup.py build_ext --inplace
stage doctor 60 "$PYTHON" -m setr_fast.doctor
stage tests 240 "$PYTHON" -m pytest -m gpu --continue-on-collection-errors -q -p no:cacheprovider
stage benchmarks 200 "$PYTHON" -m pytest benchmarks/ --benchmark-only --record -q -p no:cacheprovider
# Where the small cases of our kernels read, write and race; the tool comes with the toolkit, not with torch.
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    stage sanitizer-memcheck 120 "$sanitizer" --tool memcheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
    stage sanitizer-racecheck 90 "$sanitizer" --tool racecheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
else
    echo "sanitizer: skipped, compute-sanitizer is not installed"
fi
find benchmarks/results -name '*.jsonl' -newer "$OUT/build.log" -exec cp {} "$OUT/" \;
if command -v nvidia-smi >/dev/null; then nvidia-smi >"$OUT/card.txt" 2>&1; fi

echo "results in $OUT: $(ls "$OUT" | tr '\n' ' ')"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
