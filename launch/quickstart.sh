#!/usr/bin/env bash
# Install, render objects, train, score and draw a summary: `bash launch/quickstart.sh`. A second call keeps finished phases
# and resumes an interrupted training. Ctrl-C or SIGTERM ends every process that was started.
#   QUICKSTART_DIR  where (default: runs/quickstart in the checkout)
#   VENV, PYTHON, DALI  see launch/install.sh
set -euo pipefail
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
threads=${OMP_NUM_THREADS:-2}  # for phases with a single process
source "$launch/env.sh"
work=${QUICKSTART_DIR:-$IJEPA_DS_REPO/runs/quickstart}
case $work in /*) ;; *) work=$PWD/$work ;; esac
run=$work/run
group=""  # process group of the current phase

group_lives() {  # zombies do not count: the first process of some containers does not reap them
    { cat /proc/[0-9]*/stat 2>/dev/null || true; } | sed 's/.*) //' |
        awk -v group="$group" '$3 == group && $1 != "Z" { found = 1 } END { exit !found }'
}

end_group() {  # the deepspeed runner dies of SIGTERM and leaves the ranks, so signal the whole group
    local tenths
    if ! group_lives; then return; fi
    kill -TERM -- "-$group" 2>/dev/null || true
    for ((tenths = 0; tenths < 400; tenths++)); do
        group_lives || return 0
        sleep 0.1
    done
    kill -KILL -- "-$group" 2>/dev/null || true
}

stop() {  # $1: exit code of the signal
    trap '' INT TERM HUP
    echo "quickstart.sh: stopping" >&2
    [ -z "$group" ] || end_group
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

phase() {  # title, command...: run it in its own process group and print its duration
    local title=$1 started=$SECONDS status=0
    shift
    printf '\n== %s\n' "$title"
    set -m
    "$@" </dev/null &
    group=$!
    set +m
    wait "$group" || status=$?
    end_group
    group=""
    if [ "$status" -ne 0 ]; then
        echo "quickstart.sh: '$title' failed with exit code $status; see the message above" >&2
        exit "$status"
    fi
    echo "== $title: done in $((SECONDS - started)) s"
}

objects() {  # split, number of images, seed
    local out=$work/objects/$1
    if [ -f "$out/scenes.json" ]; then printf '\n== %s exists\n' "$out"; return; fi
    rm -rf -- "$work/objects/.$1.partial"*  # left by an interrupted call
    phase "rendering $2 objects" ijepa-ds data objects --out "$out" --num "$2" --size 64 --seed "$3" --split "$1"
}

train() {
    local gpus=0 ranks=2 port
    local -a number=()
    if ijepa_ds_has_gpu; then gpus=$(python -c 'import torch; print(torch.cuda.device_count())'); fi
    if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
        ranks=$gpus  # the launcher uses the devices named there, unless --num_gpus is given
    else
        if [ "$gpus" -gt 0 ]; then  # a power of two, so that it divides the batch
            for ranks in 8 4 2 1; do [ "$ranks" -gt "$gpus" ] || break; done
        fi
        number=(--num_gpus "$ranks")
    fi
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    # ZeRO-1: a network of this size needs no sharded parameters, and gathering them would double the time of a step.
    # --hostfile '': ignore a cluster's hostfile in /job; this script uses one machine.
    phase "training with $ranks ranks on $([ "$gpus" -gt 0 ] && echo GPUs || echo "the CPU")" \
        deepspeed --log_level error --hostfile '' --master_port "$port" ${number[@]+"${number[@]}"} \
        --module ijepa_ds.train --config "$IJEPA_DS_REPO/configs/quickstart.yaml" \
        --deepspeed_config "$IJEPA_DS_REPO/ds_configs/zero1.json" "data.source=$work/objects/train" "run.dir=$run"
    # The launcher returns 0 when its child died of a signal, so check the trainer's own marker.
    [ -f "$run/completed.json" ] || { echo "quickstart.sh: training ended without $run/completed.json" >&2; exit 1; }
}

phase "installing into $VENV" bash "$launch/install.sh"
mkdir -p -- "$work"
objects train 8000 0
objects test 1500 1
if [ -f "$run/completed.json" ]; then
    printf '\n== %s is complete: not trained again (remove it to start over)\n' "$run"
else
    train
fi
phase "scoring the frozen encoder, and an untrained one" env OMP_NUM_THREADS="$threads" \
    ijepa-ds eval all --checkpoint "$run" --train "$work/objects/train" --test "$work/objects/test" \
    --baseline untrained --out "$work/eval"
phase "drawing the summary" ijepa-ds summary --run "$run" --eval "$work/eval" \
    --title "Quickstart: a tiny I-JEPA on rendered objects" --out "$work/summary.png"

cat <<TXT

Finished in $SECONDS s. Look at
  $work/summary.png       loss, masks, scores and nearest neighbours in one picture
  $work/eval/result.json  the scores
  $run                configuration, checkpoints, TensorBoard events
Next:
  export VENV="$VENV"; source "$launch/env.sh"    puts ijepa-ds, deepspeed and tensorboard on the PATH
  tensorboard --logdir "$work"
  configs/*.yaml             the published runs; each begins with its command and what to expect
  README.md, docs/           everything else
TXT
