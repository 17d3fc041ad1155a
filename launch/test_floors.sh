#!/usr/bin/env bash
# Run tests with the oldest versions that pyproject.toml allows: `bash launch/test_floors.sh [pytest's arguments]`.
# It installs every dependency at its floor (`>=` in pyproject.toml) into an environment of its own. Without arguments it runs
# the tests that are neither slow nor start several processes. Run it after a change of a floor.
#   FLOORS  the environment (default: .venv-floors in the checkout; 7 GB)
#   PYTHON  the Python to make it from (default: python3)
set -euo pipefail
repository=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
floors=${FLOORS:-$repository/.venv-floors}
case $floors in /*) ;; *) floors=$PWD/$floors ;; esac
[ -x "$floors/bin/python" ] || "${PYTHON:-python3}" -m venv "$floors"
"$floors/bin/python" -m pip install --quiet 'pip>=23' 'packaging>=23'
cd -- "$repository"
"$floors/bin/python" - >"$floors/floors.txt" <<'EOF'
try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    wanted = Requirement(line)
    (floor,) = (part.version for part in wanted.specifier if part.operator == ">=")
    print(f"{wanted.name}=={floor}")
EOF
cat "$floors/floors.txt"
"$floors/bin/python" -m pip install --quiet --requirement "$floors/floors.txt"
"$floors/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
[ $# -gt 0 ] || set -- -m "not slow and not dist and not nightly"
export PATH=$floors/bin:$PATH TORCH_EXTENSIONS_DIR=$floors/torch_extensions PYTHONPATH=$repository OMP_NUM_THREADS=1
# Old versions warn of what newer ones of others deprecate.
exec "$floors/bin/python" -m pytest -p no:cacheprovider -W ignore::DeprecationWarning -W ignore::FutureWarning "$@"
