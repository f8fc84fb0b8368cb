#!/usr/bin/env bash
# MiniLM fine-tuned on subsets of SQuAD v1.1, three seeds each; two and a half hours on a core beside other work. A run that is done is passed over.
#   reports/minilm/run.sh SQUAD MODEL OUT
# SQUAD: folder with train-v1.1.json.xz and dev-v1.1.json.xz; MODEL: Hugging Face folder; OUT: where the runs go.
set -euo pipefail
squad=$1 model=$2 out=$3
for questions in 8000 2000 500; do
  for seed in 0 1 2; do
    run=$out/$questions/seed-$seed
    [ -f "$run/model/config.json" ] && continue
    resume=$([ -f "$run/run.json" ] && echo --resume || true)
    python -m largebatch train squad --train "$squad/train-v1.1.json.xz" --dev "$squad/dev-v1.1.json.xz" \
      --init-from "$model" --train-questions $questions --batch 16 --epochs 1 --lr 4e-4 --microbatch 8 \
      --evaluate-every-steps 0 --checkpoint-every-steps 50 --keep-checkpoints 1 --seed $seed --out "$run" $resume
  done
done
