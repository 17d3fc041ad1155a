"""Results of checks as rows: host, check, verdict, and what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ijepa_ds import machine

FAIL, WARN, OK = "FAIL", "warn", "ok"
HERE = "(here)"  # rows about this machine's command line and configuration
_SKEW = (2.0, 30.0)  # seconds: warning, failure
_COMPARED = ("python", "torch", "deepspeed", "timm", "torchvision", "numpy", "ijepa_ds", "git_revision")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


@dataclass(frozen=True)
class Row:
    """One check of one host."""

    host: str
    check: str
    verdict: str
    found: str
    todo: str = ""

    def plain(self) -> dict[str, str]:
        """The row as JSON values."""
        return asdict(self)


def table(rows: list[Row]) -> str:
    """Text table: failures, then warnings, each with what to do; then passed checks, grouped by equal result."""
    lines = []
    for verdict in (FAIL, WARN):
        for row in (row for row in rows if row.verdict == verdict):
            lines.append((verdict, row.host, row.check, row.found))
            if row.todo:
                lines.append(("", "", "", f"-> {row.todo}"))
    together: dict[tuple[str, str], list[str]] = {}
    for row in (row for row in rows if row.verdict == OK):
        together.setdefault((row.check, row.found), []).append(row.host)
    for (check, found), names in together.items():
        who = ", ".join(names) if len(names) <= 2 else f"{len(names)} hosts"
        lines.append((OK, who, check, found))
    widths = [max(len(line[column]) for line in [("", "host", "check"), *lines]) for column in range(3)]
    out = [f"{'':{widths[0]}}  {'host':{widths[1]}}  {'check':{widths[2]}}  found"]
    for line in lines:
        cells = "  ".join(text.ljust(width) for text, width in zip(line[:3], widths, strict=True))
        out += [
            f"{cells}  {text}".rstrip() if i == 0 else " " * (sum(widths) + 6) + text
            for i, text in enumerate(line[3].split("\n"))
        ]
    return "\n".join(out)


def of_host(name: str, found: Mapping[str, Any], slots: int, several: bool, need_bytes: float) -> Iterator[Row]:
    """Rows of checks that need one host only.

    Args:
        name: in the hostfile.
        found: `probe.answer`.
        slots: ranks on this host.
        several: whether there are other hosts.
        need_bytes: size of the checkpoints that are kept.
    """
    yield from _of_devices(name, found, slots)
    disk = found["disk"]
    if "error" in disk:
        yield Row(name, "run folder", FAIL, disk["error"], "make room, mend the rights, or choose another run.dir")
    else:
        text = f"{disk['free'] / 1e9:,.1f} GB free in {disk['folder']}, {disk['mb_per_s']:,.0f} MB/s written and flushed"
        few = disk["free"] < need_bytes
        todo = f"the checkpoints that are kept need {need_bytes / 1e9:,.1f} GB: make room, or lower run.keep_last"
        yield Row(name, "run folder", WARN if few else OK, text, todo if few else "")
    data = found["data"]
    if "error" in data:
        yield Row(name, "data", FAIL, data["error"], "mount or copy the data there, at the same path, or mend data.source")
    elif "pixels" in data:
        yield Row(name, "sample", OK, f"{data['sample']}: {data['pixels'][0]} x {data['pixels'][1]} pixels")
    own = found["names"].get(found["host"], "?")
    if several and own.startswith("?"):
        yield Row(name, "names", WARN, f"its own name {found['host']} cannot be resolved", "add it to /etc/hosts")
    unknown = [peer for peer, address in found["names"].items() if address.startswith("?") and peer != found["host"]]
    if unknown:
        yield Row(name, "names", WARN, f"cannot resolve {', '.join(unknown)}", "use addresses in the hostfile, or mend DNS")
    elif several:
        yield Row(name, "names", OK, f"{len(found['names'])} names resolved")
    yield from _of_containers(name, found, slots)
    if isinstance(found["ulimit_files"], int) and found["ulimit_files"] < 4096:
        todo = "raise it (ulimit -n 65536): every loader thread and connection takes some"
        yield Row(name, "open files", WARN, f"limit {found['ulimit_files']}", todo)


def _of_containers(name: str, found: Mapping[str, Any], slots: int) -> Iterator[Row]:
    """Limits that containers and login sessions set."""
    shared, locked = found["shared_memory"], found["locked_memory"]
    locked = {} if "error" in locked else locked
    ranks = slots if found["gpus"] else 1  # without GPUs nothing uses shared memory
    for limit in machine.small_limits(shared if isinstance(shared, int) else None, locked, ranks):
        yield Row(name, limit.name, WARN, limit.found, limit.advice)


def _of_devices(name: str, found: Mapping[str, Any], slots: int) -> Iterator[Row]:
    gpus, cores = found["gpus"], found["cores"]
    if isinstance(gpus, dict):
        yield Row(name, "GPUs", FAIL, gpus["error"], "mend the driver of that host, or take it out of the hostfile")
    elif gpus:
        text = f"{len(gpus)} x {gpus[0]['name']}, {gpus[0]['memory.total']} MiB, driver {gpus[0]['driver_version']}"
        if len(gpus) < slots:
            yield Row(name, "GPUs", FAIL, f"{text}; {slots} slots", "lower its slots, or find out where its GPUs went")
        else:
            yield Row(name, "GPUs", OK, text)
        sick = [
            i
            for i, gpu in enumerate(gpus)
            if gpu["ecc.errors.uncorrected.volatile.total"].isdigit() and int(gpu["ecc.errors.uncorrected.volatile.total"])
        ]
        busy = [i for i, gpu in enumerate(gpus) if gpu["memory.used"].isdigit() and int(gpu["memory.used"]) > 1024]
        if sick:
            yield Row(name, "GPU health", FAIL, f"uncorrected memory errors on GPU {sick}", "reset or replace them")
        if busy:
            yield Row(name, "GPU use", WARN, f"more than 1 GiB in use on GPU {busy}", "is another job running there?")
    else:
        yield Row(name, "GPUs", OK, f"none: {slots} CPU rank{'s' if slots > 1 else ''}, {cores} cores")
    threads = found["threads"] or max(1, cores // slots)
    if threads * slots > cores:
        fewer = f"OMP_NUM_THREADS={max(1, cores // slots)} (.deepspeed_env), or " if threads > 1 else ""
        todo = f"{fewer}fewer slots, or more cores (affinity, CPU limit of the container)"
        yield Row(name, "threads", WARN, f"{slots} ranks x {threads} threads on {cores} cores", todo)
    else:
        yield Row(name, "threads", OK, f"{slots} ranks x {threads} threads on {cores} cores")


def compared(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of properties that must be equal on all hosts: versions, kind of device, data; names the hosts that differ."""
    dali = {name: {k: v for k, v in answer["versions"].items() if k in _DALI} for name, answer in found.items()}
    for name in found:
        if not dali[name] and any(dali.values()):
            yield Row(
                name, "DALI", FAIL, "is not installed there, but on other hosts", "pip install 'ijepa_ds[dali]' in its venv"
            )
    for key in (*_COMPARED, *_DALI):
        yield from _odd({name: answer["versions"].get(key) for name, answer in found.items()}, key, "install the same there")
    yield from _odd({name: bool(answer["gpus"]) for name, answer in found.items()}, "kind of device", "GPUs on all, or on none")
    drivers = {n: a["gpus"][0]["driver_version"] for n, a in found.items() if isinstance(a["gpus"], list) and a["gpus"]}
    yield from _odd(drivers, "driver", "install the same driver", WARN)
    sums = {n: f"{a['data']['checksum']} ({a['data']['of']})" for n, a in found.items() if "error" not in a["data"]}
    yield from _odd(sums, "data", "the hosts must see the same images: compare the folder there with the others'")
    for name, answer in found.items():
        found_versions = answer["versions"]
        text = ", ".join(
            f"{key} {found_versions[key]}"
            for key in ("python", "torch", "deepspeed", *_DALI, "ijepa_ds")
            if key in found_versions
        )
        yield Row(
            name,
            "versions",
            OK,
            f"{text}{' at ' + found_versions['git_revision'] if found_versions.get('git_revision') else ''}",
        )
        if name in sums:
            yield Row(name, "data", OK, sums[name])


def _odd(values: Mapping[str, Any], what: str, todo: str, verdict: str = FAIL) -> Iterator[Row]:
    if len(set(values.values())) < 2:
        return
    usual = Counter(values.values()).most_common(1)[0][0]  # of equally many, the first host's
    for name, value in values.items():
        if value != usual:
            yield Row(name, what, verdict, f"{value}, but {usual} on {next(n for n in values if values[n] == usual)}", todo)


def clock(name: str, time: float, sent: float, received: float) -> Row:
    """Compare a host's clock with this machine's; `time` was read between `sent` and `received`."""
    skew = max(sent - time, time - received, 0.0)
    if skew <= _SKEW[0]:
        return Row(name, "clock", OK, "agrees with this machine's")
    side = "behind" if time < sent else "ahead"
    text = f"at least {skew:,.0f} s {side} of this machine's"
    return Row(name, "clock", FAIL if skew > _SKEW[1] else WARN, text, "start chrony or ntpd there (logs and leases go wrong)")
