#!/usr/bin/env bash
# The paper's table in miniature. A run that is done is passed over, one that was stopped goes on. Some two hours on two cores.
#   reports/bert-tiny/run.sh TEXT SQUAD OUT
# TEXT: text for `largebatch prepare`; SQUAD: folder with train-v1.1.json.xz and dev-v1.1.json.xz; OUT: where all goes.
set -euo pipefail
text=$1 squad=$2 out=$3
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive # two runs at a time, a core each
tuning=(--epochs 2 --batch 32 --lr 1e-3 --train-questions 8000)

python -m largebatch prepare --source "$text" --out "$out/corpus" --vocabulary-size 8192

pretrain_and_tune() { # NAME, then options of bert-tiny
  local resume
  resume=$([ -f "$out/$1/run.json" ] && echo --resume || true)
  python -m largebatch train bert-tiny "${@:2}" --corpus "$out/corpus" --out "$out/$1" $resume \
    --squad-train "$squad/train-v1.1.json.xz" --squad-dev "$squad/dev-v1.1.json.xz" --squad-seeds 3 \
    "${tuning[@]/#--/--squad-}"
}
untrained() {
  [ -f "$out/untrained/model/config.json" ] || python "$(dirname "$0")/untrained.py" "$out/corpus" "$out/untrained/model"
  for seed in 0 1 2; do
    run=$out/untrained/squad/seed-$seed
    [ -f "$run/model/config.json" ] && continue
    python -m largebatch train squad --train "$squad/train-v1.1.json.xz" --dev "$squad/dev-v1.1.json.xz" \
      --init-from "$out/untrained/model" "${tuning[@]}" --keep-checkpoints 1 --seed $seed \
      --out "$run" $([ -f "$run/run.json" ] && echo --resume || true)
  done
}
pretrain_and_tune batch-256 --batch 256 --last-batch 128 && untrained &
other=$!
pretrain_and_tune batch-32 --batch 32 --last-batch 32
wait $other
