#!/usr/bin/env bash
# The paper's table in miniature. A run that is done is passed over, one that was stopped goes on. Four hours on two cores.
#   reports/bert-tiny/run.sh TEXT SQUAD OUT
# TEXT: text for `largebatch prepare`; SQUAD: folder with train-v1.1.json.xz and dev-v1.1.json.xz; OUT: where all goes.
set -euo pipefail
text=$1 squad=$2 out=$3
export squad out OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive # two runs at a time, a core each

train() { # FOLDER RECIPE OPTIONS
  [ -f "$1/model/config.json" ] && return
  resume=$([ -f "$1/run.json" ] && echo --resume || true)
  python -m largebatch train "$2" "${@:3}" --keep-checkpoints 1 --out "$1" $resume
}
fine_tune() { # NETWORK SEED
  train "$out/$1/squad/seed-$2" squad --train "$squad/train-v1.1.json.xz" --dev "$squad/dev-v1.1.json.xz" \
    --init-from "$out/$1/model" --epochs 1 --lr 1e-3 --stride 90 --dropout 0 --attention-dropout 0 \
    --evaluate-every-steps 0 --seed "$2"
}
export -f train fine_tune

[ -f "$out/corpus/manifest.json" ] || python -m largebatch prepare --source "$text" --out "$out/corpus" --vocabulary-size 8192
train "$out/batch-256" bert-tiny --corpus "$out/corpus" &
other=$!
train "$out/batch-32" bert-tiny --batch 32 --last-batch 32 --corpus "$out/corpus"
wait $other
[ -f "$out/untrained/model/config.json" ] || python "$(dirname "$0")/untrained.py" "$out/corpus" "$out/untrained/model"
for seed in 0 1 2; do printf '%s\n' "untrained $seed" "batch-256 $seed" "batch-32 $seed"; done |
  xargs -P 2 -L 1 bash -c 'set -e; fine_tune "$0" "$1"'
