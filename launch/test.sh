#!/usr/bin/env bash
# All checks: `bash launch/test.sh`; arguments go to pytest (`bash launch/test.sh -m 'not slow' tests/test_masks.py`).
set -euo pipefail
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$launch/env.sh"
bash "$launch/install.sh" test
cd -- "$IJEPA_DS_REPO"

check() {
    local started=$SECONDS
    printf '\n== %s\n' "$*"
    "$@"
    echo "== $1: $((SECONDS - started)) s"
}
check ruff check .
check mypy
printf '\n== pytest\n'
exec python -m pytest "$@"  # in our place, so that it gets our signals
