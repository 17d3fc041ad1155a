#!/usr/bin/env bash
# Compute the tables of docs/evaluate.md from finished runs of one recipe. Existing results are kept.
#   bash launch/tables.sh photos ../shared/data/cifar10/train ../shared/data/cifar10/test runs/seed0 runs/seed1 runs/seed2
#   bash launch/tables.sh scenes data/scenes/train data/scenes/test runs/scenes
# Results are in RUN/eval/TASK.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/env.sh
source "$here/env.sh"

usage() { sed -n '2,4p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[ $# -ge 4 ] || usage
kind=$1 train=$2 test=$3
shift 3

score() {  # RUN TASK OPTION...
    local run=$1 task=$2
    shift 2
    [ -e "$run/eval/$task/result.json" ] && return
    python -m ijepa_ds.cli eval "$task" --checkpoint "$run" --train "$train" --test "$test" --out "$run/eval/$task" "$@"
}

for run in "$@"; do
    case $kind in
        photos)
            score "$run" knn --k 20 --baseline untrained
            score "$run" linear --baseline untrained
            score "$run" attentive --baseline untrained --lr 1e-3 3e-3 --weight-decay 0.1 --epochs 10
            score "$run" lowshot --per-class 10 --draws 3 --baseline untrained
            ;;
        scenes)
            score "$run" count --baseline untrained pixels --epochs 20 --schedule cosine
            score "$run" distance --baseline untrained pixels --epochs 20 --schedule cosine
            ;;
        *) usage ;;
    esac
done
python -m ijepa_ds.evals.table "$@"
