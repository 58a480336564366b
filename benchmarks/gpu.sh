#!/usr/bin/env bash
# Every check and benchmark that needs a GPU, from a bare checkout in under 9 minutes: benchmarks/gpu.sh [options of gpu.py]
#
# It needs python3 (or $PYTHON) with torch, Triton and numpy, and neither a network nor an installation. Writes gpu.json
# and gpu.md into $OUT, else into benchmarks/results. Exit status 1 if a check failed.
set -euo pipefail

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
mkdir -p "${OUT:=$checkout/benchmarks/results}"
out="$(cd "$OUT" && pwd)"

# Imported as `fewstep` from a folder that holds nothing else: in the checkout itself, `kernels` is another package's name.
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
ln -s "$checkout" "$place/fewstep"
cd "$place"
PYTHONPATH="$place${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1 \
    "${PYTHON:-python3}" -m fewstep.benchmarks.gpu --output "$out/gpu" "$@"
