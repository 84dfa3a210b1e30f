#!/usr/bin/env bash
# Everything that needs a GPU, unattended: what is usable, the tests marked gpu, ResNet-50 on every engine that runs, and
# how fast ResNet-50 and VGG-16 train before and after each policy's pruning.
#
#   benchmarks/gpu.sh [OUT]        OUT: folder for logs and JSON (default: benchmarks/results/gpu)
#
# Uses the Python in $PYTHON (default: .venv/bin/python, else python3) with this package importable from the repository.
# A part that fails is told and the next one goes on; the exit status is that of the first failure.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
status=0

part() { # part NAME COMMAND...
  local name=$1
  shift
  echo "== $name"
  "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 12 "$out/$name.log" | sed 's/^/   /'
  if [ "$code" -ne 0 ]; then
    echo "   failed with $code; all of it is in $out/$name.log"
    [ "$status" -ne 0 ] || status=$code
  fi
}

"$python" -m prune2deploy doctor --json >"$out/doctor.json" 2>/dev/null || true
engines=$("$python" - "$out/doctor.json" <<'PYTHON'
import json, sys
print(*(engine["name"] for engine in json.load(open(sys.argv[1]))["engines"] if engine["runs"]))
PYTHON
) || engines=""
echo "engines that run here: ${engines:-none}"

part tests "$python" -m pytest -m gpu -q -p no:cacheprovider
for engine in $engines; do
  for batch in 1 32 256; do
    [ "$engine" != ort-cpu ] || [ "$batch" = 1 ] || continue # minutes on a CPU, and no news
    part "resnet50-$engine-batch$batch" "$python" benchmarks/yield_resnet50.py \
      --engine "$engine" --batch "$batch" --out "$out/resnet50-$engine-batch$batch.json"
  done
done
for precision in no bf16; do
  part "training-speed-$precision" "$python" benchmarks/training_speed.py \
    --mixed-precision "$precision" --out "$out/training-speed-$precision.json"
done
exit "$status"
