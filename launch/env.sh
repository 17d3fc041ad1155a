# shellcheck shell=bash
# The environment of every launch script, to be sourced by bash. It sets no shell option and starts no Python.
#   VENV             the virtual environment (default: .venv in the checkout; of copied scripts, that of ijepa-ds on the PATH)
#   OMP_NUM_THREADS  threads of a rank (default without a GPU: 1; more threads than cores makes steps 5 to 10 times slower)

IJEPA_DS_REPO=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

if [ -z "${VENV:-}" ] && [ ! -f "$IJEPA_DS_REPO/pyproject.toml" ] && command -v ijepa-ds >/dev/null; then
    VENV=$(dirname -- "$(dirname -- "$(command -v ijepa-ds)")")  # `ijepa-ds copy-examples`
fi
if [ -z "${VENV:-}" ]; then
    VENV=$IJEPA_DS_REPO/.venv
    case $VENV in
        *[[:space:]]*)  # PyTorch cannot link an operator when its own path has a blank in it
            VENV=${XDG_CACHE_HOME:-$HOME/.cache}/ijepa_ds/venv-$(cksum <<<"$IJEPA_DS_REPO" | cut -d ' ' -f 1) ;;
    esac
fi
case $VENV in /*) ;; *) VENV=$PWD/$VENV ;; esac
VENV=${VENV%/}
export VENV

# One folder for each environment: operators compiled for another PyTorch do not load, and another build may hold the lock.
export TORCH_EXTENSIONS_DIR=${TORCH_EXTENSIONS_DIR:-$VENV/torch_extensions}
# a script that sources this file makes the environment itself
if [ "${#BASH_SOURCE[@]}" -eq 1 ] && [ ! -x "$VENV/bin/python" ]; then
    echo "env.sh: there is no environment at $VENV: set VENV to yours, or run bash launch/install.sh" >&2
fi
case $PATH in "$VENV/bin:"*) ;; *) export PATH=$VENV/bin:$PATH ;; esac  # the build needs ninja, the launcher python

# Whether this process may use an NVIDIA GPU. An empty CUDA_VISIBLE_DEVICES means none; WSL has no device files.
ijepa_ds_has_gpu() {
    [ "${CUDA_VISIBLE_DEVICES-all}" != "" ] || return 1
    compgen -G '/dev/nvidia[0-9]*' >/dev/null && return 0
    command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

ijepa_ds_has_gpu || export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
