#!/usr/bin/env bash
# Make the virtual environment: `bash launch/install.sh`, or `... install.sh test` with the tools of launch/test.sh.
# `... install.sh test-all` also installs, with apt-get as root, the programs that optional tests need: a browser, sshd, pdsh,
# SLURM and libaio. Use it on a test machine: some of these packages start daemons. launch/test.sh does not need it.
# A second call does nothing. An interrupted installation is deleted and made again.
#   VENV    where (default: .venv in the checkout)
#   PYTHON  the Python to make it from (default: the first of python3, python3.14 ... python3.10 that is new enough)
#   DALI    cuda13 (default), or cuda12 for drivers older than 580, which also need a PyTorch for CUDA 12
# pip's own settings (environment, pip.conf) apply: indexes, caches, proxies, certificates.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/env.sh"

needed_gb=10  # 7 for the environment, 3 for wheels during the installation
notes=$VENV/.ijepa_ds  # state files: `recipe` (how the venv was made), `busy` (pip is running), `ready-*`
problems=()

find_python() {  # sets `python`; not the one inside VENV, which may be deleted
    local PATH=${PATH#"$VENV/bin:"} candidate
    local -a candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        python=$(command -v -- "$candidate") || continue
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && return
    done
    python=""
    problems+=("Python 3.10 or newer: tried ${candidates[*]}
    Debian/Ubuntu: apt-get install python3 python3-venv python3-dev; without root: conda, uv or pyenv make one,
    then PYTHON=/path/to/python3 bash launch/install.sh")
}

check_python() {
    "$python" -c 'import venv, ensurepip' 2>/dev/null || problems+=("the venv module of $python
    Debian/Ubuntu: apt-get install python3-venv; or set PYTHON to a Python that has it (conda, uv, pyenv)")
}

check_place() {
    local folder=$VENV free
    while [ ! -d "$folder" ]; do folder=$(dirname -- "$folder"); done
    [ -w "$folder" ] || problems+=("a folder that can be written: $folder cannot
    set VENV to a path on a disk of yours")
    free=$(($(df -Pk -- "$folder" | awk 'NR == 2 { print $4 }') / 1000000))
    is_usable || [ "$free" -ge "$needed_gb" ] || problems+=("$needed_gb GB of disk: $free are free in $folder
    make room, or set VENV to a path on another disk")
    case $VENV in *[[:space:]:\'\"\$]*) problems+=("a path without blanks, quotes, colons or dollar signs: VENV is $VENV
    PyTorch cannot compile operators there; set VENV to another") ;; esac
    if [ -e "$VENV" ] && [ ! -d "$notes" ] && [ -n "$(ls -A -- "$VENV")" ]; then
        problems+=("a place of its own: $VENV exists and was not made by this script
    set VENV to another path, or install into it yourself: pip install -e '.[dali]'")
    fi
}

check_machine() {
    case ${DALI:-cuda13} in cuda12 | cuda13) ;; *) problems+=("a known DALI: '$DALI'; cuda12 or cuda13") ;; esac
    command -v flock >/dev/null || problems+=("flock
    Debian/Ubuntu: apt-get install util-linux")
    find_python
    [ -z "$python" ] || check_python
    check_place
    [ ${#problems[@]} -gt 0 ] || return 0
    printf 'ijepa_ds cannot be installed; missing:\n' >&2
    printf '  - %s\n' "${problems[@]}" >&2
    exit 1
}

# An environment with the same recipe is updated; any other is made again.
recipe() { printf '%s\n' "$VENV" "DALI ${DALI:-cuda13}"; }

is_usable() {
    [ ! -e "$notes/busy" ] && [ -x "$VENV/bin/python" ] && [ "$(cat "$notes/recipe" 2>/dev/null)" = "$(recipe)" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(cat "$notes/python")" = "$(command -v -- "$PYTHON")" ]; }
}

stamp() {  # hash of everything that determines what is installed
    local base=$IJEPA_DS_REPO
    { recipe; grep '^version' "$VENV/pyvenv.cfg"; echo "$base"
      cat "$base/setup.py" "$base/pyproject.toml" "$base/launch/install.sh"; } | sha256sum
}

is_ready() { is_usable && [ "$(cat "$notes/ready-$1" 2>/dev/null)" = "$(stamp)" ]; }

make_venv() {
    [ ! -e "$VENV" ] || { echo "$VENV is incomplete or has another recipe: making it again"; rm -rf -- "$VENV"; }
    mkdir -p "$notes"
    touch "$notes/busy"
    "$python" -m venv "$VENV"
    recipe >"$notes/recipe"
    echo "$python" >"$notes/python"
}

install_packages() {  # $1: extras
    mkdir -p "$VENV/tmp"  # pip unpacks 3 GB: /tmp may be small
    touch "$notes/busy"
    (
        export TMPDIR=$VENV/tmp PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
        cd -- "$IJEPA_DS_REPO" &&
            "$VENV/bin/python" -m pip install 'pip>=23' &&  # older versions cannot install an editable pyproject
            "$VENV/bin/python" -m pip install -e ".[$1]"
    ) || { echo "install.sh: pip failed; see its message above. Fix the cause and run this again." >&2; exit 1; }
    rm -rf -- "$VENV/tmp" "$notes/busy"
}

# What tests/chromium.py, tests/dist/two_hosts.py, tests/dist/slurm.py, tests/dist/mounts.py and the tests of NVMe offload look for.
install_programs() {
    local package
    local -a root=() missing=() failed=()
    for package in chromium openssh-server openssh-client iproute2 pdsh munge slurmctld slurmd slurm-client bindfs libaio-dev; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || { echo "the programs of optional tests are installed"; return 0; }
    if ! command -v apt-get >/dev/null; then
        echo "install.sh: test-all needs apt-get; on other systems install what corresponds to: ${missing[*]}" >&2
        exit 1
    fi
    [ "$(id -u)" = 0 ] || root=(sudo)
    "${root[@]}" apt-get update || true  # the package lists may be recent enough
    for package in "${missing[@]}"; do  # one by one: some are not in every release
        "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" ||
            failed+=("$package")
    done
    [ ${#failed[@]} -eq 0 ] && return
    echo "install.sh: apt-get could not install ${failed[*]}; the tests that need them are skipped" >&2
    exit 1
}

main() {
    local kind=${1:-base}
    case $kind in
        base | test) make_ready "$kind" ;;
        test-all) make_ready test; install_programs ;;
        *) echo "install.sh: '$kind'? Nothing, test or test-all" >&2; exit 2 ;;
    esac
}

make_ready() {  # $1: base or test
    local kind=$1 extras=dali
    if is_ready "$kind"; then echo "$VENV is ready"; return; fi
    check_machine
    mkdir -p -- "$(dirname -- "$VENV")"
    exec 9>"$VENV.lock"
    flock -n 9 || { echo "waiting for another install into $VENV"; flock 9; }
    if is_ready "$kind"; then echo "$VENV is ready"; return; fi
    is_usable || make_venv
    [ "${DALI:-cuda13}" = cuda13 ] || extras=dali-cuda12
    [ "$kind" = base ] || extras=$extras,test
    install_packages "$extras"
    stamp >"$notes/ready-base"
    [ "$kind" = base ] || stamp >"$notes/ready-$kind"
    echo "$VENV is ready, in $SECONDS s"
}

main "$@"
