#!/usr/bin/env bash
# Run a training command and restart it after a failure, from its newest valid checkpoint (docs/checkpoints.md):
#   bash launch/run.sh [--restarts N] [--fruitless N] [--backoff SECONDS] -- deepspeed --num_gpus 8 --module ijepa_ds.train ...
# SIGTERM, SIGUSR1 or Ctrl-C save and stop it. VENV: see launch/env.sh
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
[ -x "$VENV/bin/ijepa-ds" ] || { echo "run.sh: $VENV has no ijepa-ds: run launch/install.sh first" >&2; exit 2; }
exec "$VENV/bin/ijepa-ds" supervise "$@"
