#!/usr/bin/env bash
# The paper's table in miniature. A run that is done is passed over, one that was stopped goes on. Four hours on two cores of
# an Intel Xeon with AMX, ten on two of an AMD EPYC without instructions for bfloat16.
#   reports/bert-tiny/run.sh TEXT SQUAD OUT [NETWORK/seed-N ...]
# TEXT: text for `largebatch prepare`; SQUAD: folder with train-v1.1.json.xz and dev-v1.1.json.xz; OUT: where all goes.
# NETWORK is untrained, batch-256 or batch-32; without any, all three with seeds 0, 1 and 2. A seed is that of the pre-training
# and that of the fine-tuning.
set -euo pipefail
export squad=$2 out=$3 here=$(dirname "$0") OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive # two runs at a time, a core each
[ -f "$out/corpus/manifest.json" ] || python -m largebatch prepare --source "$1" --out "$out/corpus" --vocabulary-size 8192

train() { # FOLDER RECIPE OPTIONS
  [ -f "$1/model/config.json" ] && return
  resume=$([ -f "$1/run.json" ] && echo --resume || true)
  python -m largebatch train "$2" "${@:3}" --keep-checkpoints 1 --out "$1" $resume
}
one() { # NETWORK/seed-N
  seed=${1##*-}
  case $1 in
  untrained/*) [ -f "$out/$1/model/config.json" ] || python "$here/untrained.py" "$out/corpus" "$seed" "$out/$1/model" ;;
  batch-256/*) train "$out/$1" bert-tiny --corpus "$out/corpus" --seed "$seed" ;;
  batch-32/*) train "$out/$1" bert-tiny --batch 32 --last-batch 32 --corpus "$out/corpus" --seed "$seed" ;;
  esac
  train "$out/squad/$1" squad --train "$squad/train-v1.1.json.xz" --dev "$squad/dev-v1.1.json.xz" \
    --init-from "$out/$1/model" --epochs 2 --lr 1e-3 --stride 90 --dropout 0 --attention-dropout 0 \
    --evaluate-every-steps 0 --seed "$seed"
}
export -f train one

[ $# -gt 3 ] || set -- "$@" {untrained,batch-256,batch-32}/seed-{0,1,2}
printf '%s\n' "${@:4}" | xargs -P 2 -I RUN bash -c 'set -e; one RUN'
