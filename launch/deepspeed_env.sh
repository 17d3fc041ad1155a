#!/usr/bin/env bash
# Print the variables that DeepSpeed's launcher must export on every host: `bash launch/deepspeed_env.sh > .deepspeed_env`,
# in the folder that `deepspeed` is started from, or in the home directory. Without the file the launcher exports only a few
# variables (PYTHON*, NCCL*).
#   GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME, OMP_NUM_THREADS, NCCL_IB_HCA   written when set here
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"
export HF_HUB_OFFLINE=1  # runs download nothing; libraries then fail fast instead of trying
for name in PATH TORCH_EXTENSIONS_DIR HF_HUB_OFFLINE OMP_NUM_THREADS GLOO_SOCKET_IFNAME NCCL_SOCKET_IFNAME NCCL_IB_HCA; do
    value=${!name:-}
    [ -n "$value" ] || continue
    case $value in *['"`$\']* | *$'\n'*)  # the remote shell would interpret these
        echo "deepspeed_env.sh: $name has a sign that does not survive the remote shell: $value" >&2
        exit 1 ;;
    esac
    printf '%s=%s\n' "$name" "$value"
done
