#!/usr/bin/env bash
# Run all checks: `bash launch/test.sh`. Arguments go to pytest (`bash launch/test.sh -m 'not slow' tests/masks`).
# Two workers run the tests; a later `-n` wins: `-n 8` on a large machine, `-n 0` for one process and a debugger.
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
exec python -m pytest -n 2 --dist loadscope --no-loadscope-reorder "$@"  # replaces this shell, so pytest receives its signals
