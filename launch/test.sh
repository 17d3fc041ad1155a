#!/usr/bin/env bash
# Run all checks: `bash launch/test.sh`. Arguments go to pytest (`bash launch/test.sh -m 'not slow' tests/masks`).
# Two workers run the tests; a later `-n` wins: `-n 8` on a large machine, `-n 0` for one process and a debugger.
# mypy runs beside them, and is reported after them.
set -euo pipefail
launch=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$launch/env.sh"
bash "$launch/install.sh" test
cd -- "$IJEPA_DS_REPO"
exec python -m tests.checks "$@"  # replaces this shell, so it receives its signals
