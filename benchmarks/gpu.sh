#!/usr/bin/env bash
# Everything that needs a GPU, unattended and within the minutes that are given: what is usable, the tests marked gpu,
# ResNet-50 (dense, pruned to 0.33 of the FLOPs, aligned and not, plainly narrower) at batch 1, 32 and 256 in fp32, fp16
# and int8 on every engine that runs, how fast networks train before and after each policy's pruning, and whether a copy
# of a network measures as the network does.
#
#   benchmarks/gpu.sh [OUT] [MINUTES]     OUT: folder for logs, JSON and the table (default: benchmarks/results/gpu)
#                                         MINUTES: of the whole (default: 9.5)
#
# Uses the Python in $PYTHON (default: .venv/bin/python, else python3) with this package importable from the repository.
# A part that fails, or takes longer than its share, is told and the next one goes on; the exit status is that of the
# first failure. NETWORK, SIDE, BATCHES and ENGINES overrule what is measured, as options of gpu_engines.py, and
# HARNESS_ENGINE the engine that copies are compared on (default: ort-cuda).
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
minutes=${2:-9.5}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
total=$(awk -v minutes="$minutes" 'BEGIN { printf "%d", 60 * minutes }')

share() { # share PERCENT OF-THE-WHOLE: as many seconds, or what is left if that is less
  local seconds=$((total * $1 / 100)) left=$((total - SECONDS))
  echo $((seconds < left ? seconds : left))
}

part() { # part NAME SECONDS COMMAND...
  local name=$1 limit=$2
  shift 2
  if [ "$limit" -lt 5 ]; then
    echo "== $name: not begun, the time was over"
    return
  fi
  echo "== $name (at most $limit s)"
  local begun=$SECONDS
  timeout --kill-after=5 "$limit" "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 40 "$out/$name.log" | sed 's/^/   /'
  case $code in
    0) echo "   done in $((SECONDS - begun)) s" ;;
    124 | 137) echo "   ended after $limit s; what it did is in $out/$name.log" ;;
    *) echo "   failed with $code; all of it is in $out/$name.log" ;;
  esac
  [ "$code" -eq 0 ] || [ "$status" -ne 0 ] || status=$code
}

part doctor "$(share 10)" "$python" -m prune2deploy doctor
# Only the files that hold such tests: the others may need packages that this machine lacks, if only to be collected.
mapfile -t files < <(grep -rl --include='test_*.py' 'mark\.gpu' tests | sort)
part tests "$(share 25)" "$python" -m pytest -m gpu -q -p no:cacheprovider "${files[@]}"
# The matrix has what is left but for a share of the training; its last cell may take longer than it was given.
matrix=$((total - SECONDS - total * 40 / 100))
part engines $((matrix + total * 5 / 100)) "$python" benchmarks/gpu_engines.py \
  --network "${NETWORK:-resnet50}" ${SIDE:+--side "$SIDE"} --engines "${ENGINES:-all}" --batches "${BATCHES:-32,1,256}" \
  --minutes "$(awk -v seconds="$matrix" 'BEGIN { printf "%.2f", seconds / 60 }')" \
  --work "$work" --out "$out/engines.json"
for precision in bf16 no; do
  part "training-speed-$precision" "$(share 10)" "$python" benchmarks/training_speed.py --steps 6 \
    --mixed-precision "$precision" --out "$out/training-speed-$precision.json"
done
part harness "$(share 10)" "$python" benchmarks/harness.py same --engine "${HARNESS_ENGINE:-ort-cuda}" --comparisons 20 \
  --seconds 15 --work "$work" --out "$out/harness.json"
# Without data to train on: speed depends on widths alone.
part latency "$(share 10)" "$python" benchmarks/latency.py --networks "${LATENCY_NETWORKS:-mobilenet_v2,resnet50}" \
  --settings "" --untrained --builds 3 --out "$out/latency.json"
echo "took $SECONDS s; logs and JSON: $out"
exit "$status"
