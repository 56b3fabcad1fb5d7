#!/usr/bin/env bash
# One go on a machine with a GPU and perhaps without a network: compile, run every test marked gpu, run the benchmarks,
# profile, leave at most 8 files in $OUT (default out/). A stage that fails is named, and the others still run.
#
#   python -m benchmarks.stamp                      # here, before the files are copied without their history
#   OUT=out bash benchmarks/gpu_session.sh          # there: under 8 minutes; BUDGET=seconds for another limit
#
# Needs torch with CUDA, nvcc, cmake, ninja, pybind11, pytest, pytest-benchmark. Wheels that lie in carry/ (xformers,
# tyro, tomli-w, ...) are unpacked first, without a network, beside what is installed and not into it.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${OUT:-out}" && cd "${OUT:-out}" && pwd)
BUDGET=${BUDGET:-465}
PYTHON=${PYTHON:-python3}
SITE=$PWD/build/carried
LOG=$OUT/session.log
STAGE=$(mktemp)
trap 'rm -f "$STAGE"' EXIT
export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1
failed=()
: >"$LOG"

stage() { # stage NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS code=0
    shift 2
    if [ $((BUDGET - SECONDS)) -lt "$limit" ]; then limit=$((BUDGET - SECONDS)); fi
    if [ "$limit" -lt 5 ]; then
        failed+=("$name")
        echo "$name: not begun, $BUDGET s are over" | tee -a "$LOG"
        return
    fi
    echo "==== $name (at most $limit s): $*" >>"$LOG"
    timeout --kill-after=5 "$limit" "$@" >"$STAGE" 2>&1 || code=$?
    cat "$STAGE" >>"$LOG"
    if [ "$code" -eq 0 ]; then
        echo "$name: ok, $((SECONDS - started)) s" | tee -a "$LOG"
    else
        failed+=("$name")
        echo "$name: FAILED (exit code $code) after $((SECONDS - started)) s; last lines:" | tee -a "$LOG"
        tail -n 15 "$STAGE"
    fi
}

if compgen -G "carry/*.whl" >/dev/null; then
    mkdir -p "$SITE"
    for wheel in carry/*.whl; do # one by one: a wheel of another platform must not keep out the rest
        stage "wheel $(basename "$wheel")" 60 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
            --no-cache-dir --upgrade --target "$SITE" "$wheel"
    done
fi
# The assembler bundled with older Tritons miscompiles some wgmma kernels; the toolkit's own is newer.
if [ -x /usr/local/cuda/bin/ptxas ]; then export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas; fi
stage build 150 env SETR_FAST_NATIVE=require "$PYTHON" setup.py build_ext --inplace
stage doctor 45 "$PYTHON" -m setr_fast.doctor
stage tests 150 "$PYTHON" -m pytest -m gpu --continue-on-collection-errors -q -p no:cacheprovider
# What matters most first: rows are written one by one, and those that were reached before the time is over stay.
stage benchmarks 180 "$PYTHON" -m pytest benchmarks/test_ops.py benchmarks/test_models.py benchmarks/test_decoder.py \
    benchmarks/test_inference.py benchmarks/test_jobs.py --benchmark-only --record-to "$OUT/rows.jsonl" -q \
    -p no:cacheprovider ${BENCHMARKS:-}
stage profile 60 "$PYTHON" -m benchmarks.trace "$OUT"
# Where the small cases of our kernels read, write and race; the tool comes with the toolkit, not with torch.
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    stage memcheck 90 "$sanitizer" --tool memcheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
    stage racecheck 90 "$sanitizer" --tool racecheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
else
    echo "sanitizer: skipped, compute-sanitizer is not installed" | tee -a "$LOG"
fi
if command -v nvidia-smi >/dev/null; then nvidia-smi >"$OUT/card.txt" 2>&1; fi
for file in "$OUT"/*; do # no file above 16 MiB: of a log the end, of anything else nothing
    [ "$(wc -c <"$file")" -le $((16 << 20)) ] && continue
    case $file in
        *.log | *.txt | *.jsonl) tail -c $((15 << 20)) "$file" >"$file.end" && mv "$file.end" "$file" ;;
        *) rm "$file" ;;
    esac
    echo "$(basename "$file"): too large, cut or left out" | tee -a "$LOG"
done

echo "results in $OUT after $SECONDS s: $(ls "$OUT" | tr '\n' ' ')"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
