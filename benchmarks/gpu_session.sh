#!/usr/bin/env bash
# One go on a machine with a GPU and perhaps without a network: compile, run every test marked gpu, run the benchmarks,
# profile, leave at most 8 files in $OUT (default out/). A stage that fails is named, and the others still run.
#
#   python -m benchmarks.stamp                      # here, before the files are copied without their history
#   OUT=out bash benchmarks/gpu_session.sh          # there: under 8 minutes; BUDGET=seconds for another limit
#
# Needs torch with CUDA, nvcc and what pyproject.toml asks for; the stage "needs" names what is missing and the command
# that fetches its wheels. Wheels that lie in carry/ (xformers, tyro, tomli-w, ...) are unpacked first, without a
# network, beside what is installed and not into it.
#
# What a session did not reach, the next one does with BENCHMARKS=--continue, where the rows.jsonl of the one before lies
# under benchmarks/results/<card>/ of the same commit.
#
# Every stage has a share of the time. It may use what those before it left over, and is ended when its own share and
# theirs are over, so that a slow stage costs the ones after it nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "${OUT:-out}" && cd "${OUT:-out}" && pwd)
SHARES=465 # the sum of all shares below, seconds
BUDGET=${BUDGET:-$SHARES}
PYTHON=${PYTHON:-python3}
SITE=$PWD/build/carried
LOG=$OUT/session.log
STAGE=$(mktemp) # older than every file of this session
trap 'rm -f "$STAGE" "$STAGE.out"' EXIT
export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1
failed=()
planned=0
: >"$LOG"

stage() { # stage NAME SHARE COMMAND...
    local name=$1 limit started=$SECONDS code=0 before
    planned=$((planned + $2))
    limit=$((planned * BUDGET / SHARES - SECONDS))
    shift 2
    if [ "$limit" -lt 1 ]; then
        failed+=("$name")
        echo "$name: not begun, its time is over" | tee -a "$LOG"
        return
    fi
    echo "==== $name (at most $limit s): $*" >>"$LOG"
    if [ "$limit" -gt 4 ]; then limit=$((limit - 2)); fi # two seconds to end in, then it is killed
    before=$(wc -c <"$LOG") # straight into the log: all of this may be killed, and what was said until then stays
    timeout --kill-after=2 "$limit" "$@" >>"$LOG" 2>&1 || code=$?
    if [ -n "$(tail -c 1 "$LOG")" ]; then echo >>"$LOG"; fi # it was ended amid a line
    if [ "$code" -eq 0 ]; then
        echo "$name: ok, $((SECONDS - started)) s" | tee -a "$LOG"
    else
        failed+=("$name")
        echo "$name: FAILED (exit code $code) after $((SECONDS - started)) s; last lines:" | tee -a "$LOG"
        tail -c +$((before + 1)) "$LOG" | tail -n 16 | head -n 15
    fi
}

planned=15 # of all wheels together
if compgen -G "carry/*.whl" >/dev/null; then
    mkdir -p "$SITE"
    for wheel in carry/*.whl; do # one by one: a wheel of another platform must not keep out the rest
        stage "wheel $(basename "$wheel")" 0 "$PYTHON" -m pip install -q --no-index --no-deps --no-compile \
            --no-cache-dir --upgrade --target "$SITE" "$wheel"
    done
fi
# The assembler bundled with older Tritons miscompiles some wgmma kernels; the toolkit's own is newer.
if [ -x /usr/local/cuda/bin/ptxas ]; then export TRITON_PTXAS_PATH=/usr/local/cuda/bin/ptxas; fi
if command -v nvidia-smi >/dev/null; then nvidia-smi -q >"$OUT/card.txt" 2>&1; fi
stage needs 5 "$PYTHON" -m benchmarks.needs
stage build 125 env SETR_FAST_NATIVE=require "$PYTHON" setup.py build_ext --inplace
stage doctor 15 "$PYTHON" -m setr_fast.doctor
# A kernel that reads where it must not spoils the card for its process: those tests go on in another one.
stage tests 100 "$PYTHON" -m benchmarks.survive 6 -m gpu --continue-on-collection-errors -q -p no:cacheprovider
# What matters most first: rows are written one by one, and those that were reached before the time is over stay.
stage benchmarks 100 "$PYTHON" -m benchmarks.survive 1 benchmarks/test_ops.py benchmarks/test_models.py benchmarks/test_decoder.py \
    benchmarks/test_inference.py benchmarks/test_jobs.py --benchmark-only --record-to "$OUT/rows.jsonl" -q \
    -p no:cacheprovider ${BENCHMARKS:-}
stage profile 25 "$PYTHON" -m benchmarks.trace "$OUT"
stage launches 30 "$PYTHON" -m benchmarks.launches
# Where the small cases of our kernels read, write and race; the tool comes with the toolkit, not with torch.
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
    stage memcheck 25 "$sanitizer" --tool memcheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
    stage racecheck 25 "$sanitizer" --tool racecheck --error-exitcode 1 "$PYTHON" -m benchmarks.sanitize
else
    echo "sanitizer: skipped, compute-sanitizer is not installed" | tee -a "$LOG"
fi
# Of this session's files at most 8, none above 16 MiB: of a log the end, of anything else nothing.
count=0
for file in "$OUT"/{session.log,rows.jsonl,profile.txt,card.txt,profile.json.gz} "$OUT"/*; do
    [ -f "$file" ] && [ "$file" -nt "$STAGE" ] || continue
    case " ${seen:-} " in *" $file "*) continue ;; esac
    seen="${seen:-} $file"
    count=$((count + 1))
    if [ "$count" -gt 8 ]; then
        rm "$file"
        echo "$(basename "$file"): left out, 8 files are there" | tee -a "$LOG"
    elif [ "$(wc -c <"$file")" -gt $((16 << 20)) ]; then
        case $file in
            *.log | *.txt | *.jsonl) tail -c $((15 << 20)) "$file" >"$STAGE.out" && cp "$STAGE.out" "$file" ;;
            *) rm "$file" ;;
        esac
        echo "$(basename "$file"): too large, cut or left out" | tee -a "$LOG"
    fi
done

echo "results in $OUT after $SECONDS s: $(ls "$OUT" | tr '\n' ' ')"
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
