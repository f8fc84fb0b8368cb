#!/usr/bin/env bash
# Tests the fused GPU kernels and measures them beside torch's, on a machine with a CUDA GPU. Needs pytest, torch and Triton
# in the Python that $PYTHON names; made to end within eight minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
"$python" -c 'import torch; assert torch.cuda.is_available(), "no CUDA GPU is here"'
export PYTHONPATH="src:tests:tests/optim:benchmarks${PYTHONPATH:+:$PYTHONPATH}"
timeout 150 "$python" -m pytest -q -p no:cacheprovider tests/optim/test_fused_gpu.py -k "on_a_gpu or graph"
for model in bert-large bert-base resnet-50; do
  for dtype in float32 bfloat16; do
    timeout 50 "$python" benchmarks/optimizer_step.py --model "$model" --dtype "$dtype" --device cuda --rounds 31
  done
done
