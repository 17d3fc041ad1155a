"""Checks on one host: `python -m ijepa_ds.doctor.probe` reads a request (JSON) and prints the answer.

Runs on every host in the environment of its ranks; does not import torch. Failed checks are part of the answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ijepa_ds import machine
from ijepa_ds.cluster import hosts
from ijepa_ds.cluster.environment import recommended
from ijepa_ds.data.index import ImageIndex
from ijepa_ds.data.judge import Judge
from ijepa_ds.data.pillow import checked_header
from ijepa_ds.data.reading import ImageFiles
from ijepa_ds.data.scan import ScanOptions
from ijepa_ds.data.sources import SHARD_INDEX, expand, is_index, open_source
from ijepa_ds.data.values import PLAIN, Values
from ijepa_ds.data.walk import Walker
from ijepa_ds.errors import StorageError, UserError
from ijepa_ds.storage import Storage
from ijepa_ds.versions import versions

MARK = "IJEPA_DS_ANSWER "  # prefix of the answer's line; login scripts may also print
_LOOKED_AT = 5000  # files of a folder to compare: a full scan takes minutes
_WRITTEN = 8 << 20  # bytes of the write test
_TOKEN = ".ijepa_ds-doctor-"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Run all checks of this host (request: see `command.py`); a failed one is {"error": reason}."""
    now = time.time()  # first: it is compared with the other machine's clock
    parts: dict[str, Callable[[], Any]] = {
        "versions": lambda: versions() | {"executable": sys.executable},
        "gpus": list_gpus,
        "cores": machine.cores,
        "memory_gib": lambda: machine.memory_bytes() / 2**30,
        "shared_memory": machine.shared_memory_bytes,
        "locked_memory": machine.locked_memory,
        "disk": lambda: _disk(Path(request["run_dir"]), request.get("token"), request.get("index", 0)),
        "data": lambda: _data(os.path.expanduser(request["source"]), _values(request.get("values", {}))),
        "names": lambda: _names(request.get("peers", [])),
        "addresses": _addresses,
        "threads": lambda: int((os.environ.get("OMP_NUM_THREADS") or "0").partition(",")[0]),
        "ulimit_files": _open_files,
    }
    found: dict[str, Any] = {"time": now, "host": socket.gethostname()}
    for name, part in parts.items():
        try:
            found[name] = part()
        except (OSError, ValueError, StorageError, subprocess.SubprocessError) as error:
            found[name] = {"error": str(error) or type(error).__name__}
    return found


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Second request, after all hosts have answered: visible files in the run folder, network interface, port."""
    folder = existing(Path(request["run_dir"]))
    mine = folder / f"{_TOKEN}{request['token']}-{request['index']}"
    seen = sorted(int(path.name.rpartition("-")[2]) for path in folder.glob(f"{_TOKEN}{request['token']}-*"))
    found: dict[str, Any] = {"seen": seen}
    interface = hosts.interface_towards(request["master"])
    found["interface"] = {"name": interface.name, "address": interface.address} if interface else None
    world = {"MASTER_ADDR": request["master"], "LOCAL_SIZE": str(request["slots"]), "WORLD_SIZE": str(request["world"])}
    found["chosen"] = recommended(os.environ | world, machine.cores(), bool(request.get("gpus")))
    if request["index"] == 0:
        found["port"] = _port(request["port"])
    if request.get("last"):
        mine.unlink(missing_ok=True)
    return found


def existing(path: Path) -> Path:
    """The folder, or its nearest existing parent.

    Raises:
        NotADirectoryError: the path is a file.
    """
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder")
    return path


def list_gpus() -> list[dict[str, str]]:
    """This machine's NVIDIA GPUs from nvidia-smi; empty without nvidia-smi."""
    fields = ["name", "memory.total", "driver_version", "ecc.errors.uncorrected.volatile.total", "memory.used"]
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    if not shutil.which("nvidia-smi"):
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired as error:
        raise OSError("nvidia-smi: no answer in 20 s") from error
    if done.returncode:
        raise OSError(f"nvidia-smi: {(done.stderr or done.stdout).strip()}")
    rows = [[value.strip() for value in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, row, strict=True)) for row in rows]


def smallest_memory(gpus: Sequence[Mapping[str, str]]) -> float | None:
    """GiB of the smallest GPU; None if nvidia-smi does not know it: "[N/A]" where GPU and host share their memory."""
    sizes = [gpu["memory.total"] for gpu in gpus]
    return min(float(size) / 1024 for size in sizes) if sizes and all(size.isdigit() for size in sizes) else None


def _disk(run_dir: Path, token: str | None, index: int) -> dict[str, Any]:
    folder = existing(run_dir)
    found = {"folder": str(folder), "free": shutil.disk_usage(folder).free}
    began = time.monotonic()
    with tempfile.NamedTemporaryFile(dir=folder, prefix=_TOKEN) as file:
        file.write(os.urandom(1 << 20) * (_WRITTEN >> 20))
        file.flush()
        os.fsync(file.fileno())
    found["mb_per_s"] = _WRITTEN / 1e6 / (time.monotonic() - began)
    if token:
        (folder / f"{_TOKEN}{token}-{index}").touch()
    return found


def _values(fields: dict[str, Any]) -> Values:
    """The run's `Values` from JSON, in which tuples are lists."""
    parts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return Values(**parts)


def _data(source: str, values: Values) -> dict[str, Any]:
    """A checksum to compare hosts by, and, of an index or a folder of images, one image decoded."""
    if is_index(source) or is_index(os.path.join(source, SHARD_INDEX)):
        index = open_source(source, ScanOptions(one_form=False, values=values))
        position = next(i for i in range(len(index)) if i not in index.bad)
        return {"checksum": index.checksum, "images": len(index), "of": "index"} | _sample(index, position, values)
    if os.path.isdir(source):
        return _folder(source, values)
    paths = [source] if os.path.isfile(source) else expand(source)
    if not paths:
        raise UserError(f"{source} does not exist")
    return _files(paths)


def _files(paths: list[str]) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{os.stat(path).st_size}\0".encode("utf-8", "surrogateescape"))
    return {"checksum": digest.hexdigest()[:16], "images": None, "of": f"names and sizes of {len(paths)} files"}


def _folder(source: str, values: Values) -> dict[str, Any]:
    walker = Walker(os.fsencode(os.path.abspath(source)), Storage(0), arrays=bool(values.layout))
    digest, first, count = hashlib.sha256(), None, 0
    for name in itertools.islice(walker.images(), _LOOKED_AT):
        path = os.path.join(walker.root, name)
        digest.update(name + b"\0%d\0" % os.stat(path).st_size)
        first, count = first or path, count + 1
    if first is None:  # a scan takes the tars of such a folder, else its parquet files
        packed = walker.tars or walker.parquets
        if not packed:
            raise UserError(f"no image in {source}")
        return _files([os.fsdecode(os.path.join(walker.root, name)) for name in packed])
    return {
        "checksum": digest.hexdigest()[:16],
        "images": count,
        "of": f"names and sizes of the first {count:,} images",
        "sample": os.fsdecode(first),
        "pixels": decode_sample(os.fsdecode(first), Path(os.fsdecode(first)).read_bytes(), values),
    }


def _sample(index: ImageIndex, position: int, values: Values) -> dict[str, Any]:
    import numpy as np

    (image,) = list(ImageFiles(index, np.array([position])))
    return {"sample": str(image), "pixels": decode_sample(str(image), image.read(), values)}


def decode_sample(name: str, content: bytes, values: Values = PLAIN) -> list[int]:
    """Width and height of an image, decoded as training decodes it.

    Raises:
        UserError: it cannot be decoded.
    """
    reason = Judge(sys.maxsize, values=values).judge(content).reason  # Pillow has a limit of its own
    if reason:
        raise UserError(f"{name} cannot be decoded: {reason}")
    header = checked_header(content, sys.maxsize, values.layout)
    return [header.width, header.height]


def _names(peers: list[str]) -> dict[str, str]:
    """Addresses of this host's and the other hosts' names; "? reason" where a name cannot be resolved."""
    found = {}
    for name in [socket.gethostname(), *peers]:
        try:
            found[name] = str(socket.getaddrinfo(name, None)[0][4][0])
        except OSError as error:
            found[name] = f"? {error.strerror or error}"
    return found


def _addresses() -> list[str]:
    """Addresses from `hostname -I`; DeepSpeed uses the first as master address."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["hostname", "-I"], capture_output=True, text=True, timeout=5, check=True)
        if done.stdout.split():
            return done.stdout.split()
    return [interface.address for interface in hosts.interfaces() if not interface.address.startswith("127.")]


def _open_files() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _port(port: int) -> str:
    """Error text if the port is in use, else empty."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return str(error.strerror)
    return ""


def main() -> int:
    """Read the request, print the answer."""
    request = json.load(sys.stdin)
    found = look(request) if request.get("look") else answer(request)
    print(f"\n{MARK}{json.dumps(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
