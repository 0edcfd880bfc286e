#!/usr/bin/env bash
# Writes a benchmark receipt: runs `uc compress` as a user would and stores its summary as JSON.
#
#   make bench                                                          the embedded model
#   make bench BENCH_MODEL=DIR CALIBRATION="A B" EVALUATION=C           another model
#   KEEP=DIR make bench …                                               keep the run in DIR/run
#
# The receipt is named after the model folder. Times are those of one machine; compare them only within one receipt.
set -euo pipefail
cd "$(dirname "$0")/../.."
model=${BENCH_MODEL:-examples/tiny-stories}
name=$(basename "$model")
uc=${CARGO_TARGET_DIR:-target}/release/uc
run=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || trap 'rm -rf "$run"' EXIT
arguments=()
for file in ${CALIBRATION:-}; do arguments+=(--calibration "$file"); done
for file in ${EVALUATION:-}; do arguments+=(--evaluation "$file"); done
for setting in ${SET:-}; do arguments+=(--set "$setting"); done
"$uc" compress "$model" --run "$run/run" --json "${arguments[@]}" > "$run/summary.json"
sed "s#$run/##g" "$run/summary.json" > "docs/benchmarks/$name.json"
echo "docs/benchmarks/$name.json"
# The estimates of `uc plan --config` are based on this model's run.
[ "$name" != smollm2-135m ] || python3 tests/benchmark/throughput.py --model "$model"
