"""`ijepa-ds doctor`: check all hosts of a run and print a table of problems, failures first."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ijepa_ds import config
from ijepa_ds.arguments import add_run
from ijepa_ds.cluster import hosts
from ijepa_ds.cluster.hosts import Host
from ijepa_ds.config import BatchPlan, Config
from ijepa_ds.data.values import Values
from ijepa_ds.doctor import check, rows
from ijepa_ds.doctor.probe import list_gpus, smallest_memory
from ijepa_ds.doctor.remote import allocated_hosts, ask_all
from ijepa_ds.doctor.rows import FAIL, HERE, OK, WARN, Row
from ijepa_ds.errors import UserError
from ijepa_ds.model.work import work_of
from ijepa_ds.plan.hardware import GIB
from ijepa_ds.plan.memory import memory_of
from ijepa_ds.plan.report import RESERVE
from ijepa_ds.plan.spread import spread_of

_ENVIRONMENT = ".deepspeed_env"
_PROBE_SECONDS, _LINK_SECONDS = 40.0, 30
_SAVED = 16  # maximum bytes of a checkpoint per parameter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the verb."""
    add_run(parser)
    parser.add_argument("--hostfile", type=Path, help="hosts of the run, as for deepspeed (default: this machine alone)")
    parser.add_argument(
        "--num_gpus",
        type=int,
        help="without a hostfile: ranks on this machine, started to try collectives (default: its GPUs or 1; none is started)",
    )
    parser.add_argument("--master_port", type=int, default=29500, help="as for deepspeed (default 29500)")
    parser.add_argument("--master_addr", help="as for deepspeed (default: the first address of the first host)")
    parser.add_argument(
        "--srun",
        action="store_true",
        help="inside a SLURM allocation: its nodes and tasks, reached through srun instead of ssh",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


@dataclass
class _Run:
    """The run to check."""

    hosts: list[Host]
    remote: bool
    environment: dict[str, str]
    port: int
    master: str | None = None
    through: str = "ssh"  # or srun
    collectives: bool = True  # started between all ranks
    cfg: Config | None = None
    batch: BatchPlan | None = None
    ds_config: dict[str, Any] | None = None

    @property
    def world(self) -> int:
        return sum(host.slots for host in self.hosts)

    def targets(self) -> list[str | None]:
        return [host.name if self.remote else None for host in self.hosts]


def run(args: argparse.Namespace) -> int:
    """Print the table; exit code 1 if a check failed, else 0."""
    found: list[Row] = []
    run_ = _read_run(args, found)
    probes: dict[str, Any] = {}
    if run_ and run_.hosts:
        probes = _examine(run_, found)
    order = {FAIL: 0, WARN: 1, OK: 2}
    found.sort(key=lambda row: order[row.verdict])
    failed = any(row.verdict == FAIL for row in found)
    if args.json:
        print(json.dumps({"ok": not failed, "rows": [row.plain() for row in found], "hosts": probes}, indent=1))
    else:
        warned = sum(row.verdict == WARN for row in found)
        counts = f"{sum(row.verdict == FAIL for row in found)} failed, {warned} warned of"
        print(rows.table(found))
        print(f"\n{counts}: {'the run would not start, or not work' if failed else 'nothing found that would stop the run'}")
    return 1 if failed else 0


def _read_run(args: argparse.Namespace, found: list[Row]) -> _Run | None:
    """Read hostfile, exported variables, command line and configuration; add all problems to `found`."""
    run_ = _Run([], args.srun or args.hostfile is not None, {}, args.master_port, args.master_addr)
    run_.through = "srun" if args.srun else "ssh"
    run_.collectives = run_.remote or args.num_gpus is not None  # a configuration alone starts no ranks
    try:
        if args.srun:
            run_.hosts = allocated_hosts(os.environ)
        else:
            run_.hosts = hosts.parse_hostfile(args.hostfile) if args.hostfile else [_this_machine(args.num_gpus)]
        if run_.remote:
            found.append(
                Row(HERE, "allocation" if args.srun else "hostfile", OK, f"{len(run_.hosts)} hosts, {run_.world} ranks")
            )
    except ValueError as error:
        found += [Row(HERE, "hostfile", FAIL, line, "mend that line") for line in str(error).splitlines()]
    words = [str(args.config), str(args.deepspeed_config), *args.overrides]
    changed = hosts.changed_by_shell(words) if args.hostfile else []
    todo = "DeepSpeed passes it to the hosts' shells unquoted: put such a value into the YAML"
    found += [Row(HERE, "command line", FAIL, f"{word!r} would not arrive as it is", todo) for word in changed]
    if args.hostfile:
        _read_environment(run_, found)
    checked = check.read(args, run_.world or 1)
    if not run_.remote:
        check.files(checked, args)
    found += checked.rows
    run_.cfg, run_.batch, run_.ds_config = checked.cfg, checked.batch, checked.ds_config
    return run_ if run_.cfg else None


def _this_machine(num_gpus: int | None) -> Host:
    if num_gpus is None:
        num_gpus = 1
        with contextlib.suppress(OSError):  # the row "GPUs" says that nvidia-smi fails
            num_gpus = len(list_gpus()) or 1
    if num_gpus < 1:
        raise UserError(f"--num_gpus {num_gpus}: at least 1")
    return Host("localhost", num_gpus)


def _read_environment(run_: _Run, found: list[Row]) -> None:
    """Read the variables that DeepSpeed exports; the file in this folder overrides the one in the home folder.

    `DS_ENV_FILE` names another file, as for DeepSpeed.
    """
    name = os.environ.get("DS_ENV_FILE", _ENVIRONMENT)  # DeepSpeed's own variable; an absolute path is that file
    for path in dict.fromkeys((Path.home() / name, Path(name))):
        if path.is_file():
            try:
                run_.environment |= hosts.parse_environment(path)
                found.append(Row(HERE, _ENVIRONMENT, OK, f"{path}: {' '.join(run_.environment)}"))
            except (ValueError, OSError) as error:
                found += [Row(HERE, _ENVIRONMENT, FAIL, line, "mend that line") for line in str(error).splitlines()]


def _examine(run_: _Run, found: list[Row]) -> dict[str, Any]:
    """Check all hosts: each one, then what they share, then collectives."""
    assert run_.cfg
    token = secrets.token_hex(8)
    several = len(run_.hosts) > 1
    shared: dict[str, Any] = {"run_dir": run_.cfg.run.dir, "source": run_.cfg.data.source, "token": token if several else None}
    shared["values"] = asdict(Values.of(run_.cfg.data))
    shared["peers"] = [host.name for host in run_.hosts] if several else []
    requests = [shared | {"index": i} for i in range(len(run_.hosts))]
    answers = ask_all(run_.targets(), "ijepa_ds.doctor.probe", requests, run_.environment, _PROBE_SECONDS, run_.through)
    probes: dict[str, Any] = {}
    for host, reply in zip(run_.hosts, answers, strict=True):
        if reply.found is None:
            todo = f"try: ssh -o BatchMode=yes {host.name} hostname (keys, sshd, name, same folder and Python there)"
            if run_.through == "srun":
                todo = f"try: srun --overlap --nodes=1 --ntasks=1 --nodelist={host.name} hostname"
            found.append(Row(host.name, "reach", FAIL, reply.error, todo if run_.remote else ""))
            continue
        probes[host.name] = reply.found
        found.append(
            Row(
                host.name,
                "reach",
                OK,
                f"{reply.received - reply.sent:.1f} s by {run_.through}" if run_.remote else "this machine",
            )
        )
        found.append(rows.clock(host.name, reply.found["time"], reply.sent, reply.received))
    need, by_name = _plan(run_, probes, found), {host.name: host for host in run_.hosts}
    for name, answer in probes.items():
        found += rows.of_host(name, answer, by_name[name].slots, several, need)
    found += rows.compared(probes)
    if probes:
        _check_together(run_, probes, requests, found)
    return probes


def _plan(run_: _Run, probes: dict[str, Any], found: list[Row]) -> float:
    """Check the planned memory of a rank; return the bytes of the checkpoints that are kept."""
    assert run_.cfg
    on_gpus = any(isinstance(told["gpus"], list) and told["gpus"] for told in probes.values())
    work = work_of(config.resolve_auto(run_.cfg, "bfloat16" if on_gpus else "float32"))
    if run_.ds_config and run_.batch and probes:
        spread = spread_of(run_.ds_config, run_.batch, len(run_.hosts), max(host.slots for host in run_.hosts))
        need = memory_of(work, spread).peak / GIB
        for host in run_.hosts:
            answer = probes.get(host.name)
            if answer and not isinstance(answer["gpus"], dict):
                have = smallest_memory(answer["gpus"]) or answer["memory_gib"] / host.slots
                fits = need <= (1 - RESERVE) * have
                todo = "ijepa-ds plan --search proposes another way (ZeRO stage, micro-batch, checkpointing, offload)"
                text = f"{need:.2f} GiB of a rank's {have:.1f} GiB (plan)"
                found.append(Row(host.name, "memory", OK if fits else WARN, text, "" if fits else todo))
    return float(_SAVED * work.count() * (run_.cfg.run.keep_last + 1))


def _check_together(run_: _Run, probes: dict[str, Any], requests: list[dict[str, Any]], found: list[Row]) -> None:
    """Check shared folder and network; then collectives between all ranks, if every host answers."""
    first = probes.get(run_.hosts[0].name, {})
    addresses = first.get("addresses") or [run_.hosts[0].name]
    master = run_.master or (addresses[0] if run_.remote and isinstance(addresses, list) else "127.0.0.1")
    asked = [i for i, host in enumerate(run_.hosts) if host.name in probes]
    more = {"look": True, "master": master, "port": run_.port, "world": run_.world}
    questions = [
        requests[i] | more | {"slots": run_.hosts[i].slots, "gpus": bool(probes[run_.hosts[i].name]["gpus"])} for i in asked
    ]
    targets = [run_.targets()[i] for i in asked]
    looks = ask_all(targets, "ijepa_ds.doctor.probe", questions, run_.environment, _PROBE_SECONDS, run_.through)
    busy = False
    for i, reply in zip(asked, looks, strict=True):
        name = run_.hosts[i].name
        if reply.found is None:
            found.append(Row(name, "reach", FAIL, f"answered once, then: {reply.error}", "an unstable network?"))
            continue
        busy |= bool(reply.found.get("port"))
        found += _of_look(name, reply.found, asked, run_, master)
    if len(run_.hosts) > 1:  # remove the test files
        ask_all(
            targets,
            "ijepa_ds.doctor.probe",
            [q | {"last": True} for q in questions],
            run_.environment,
            _PROBE_SECONDS,
            run_.through,
        )
    if not run_.collectives:
        return
    kinds = {bool(answer["gpus"]) for answer in probes.values()}
    if len(asked) < len(run_.hosts) or busy or len(kinds) > 1:
        found.append(Row(HERE, "collectives", WARN, "not tried: see the failures", "mend those, then run this again"))
        return
    _collectives(run_, master, "cuda" if kinds == {True} else "cpu", found)


def _of_look(name: str, look: dict[str, Any], asked: list[int], run_: _Run, master: str) -> list[Row]:
    result = []
    if len(run_.hosts) > 1:
        missing = [run_.hosts[i].name for i in asked if i not in look["seen"]]
        todo = "run.dir must be one shared folder: every rank reads the others' checkpoint files when the run continues"
        text = f"does not see what {', '.join(missing)} wrote" if missing else "sees what the others wrote"
        result.append(Row(name, "shared folder", WARN if missing else OK, text, todo if missing else ""))
        interface = look["interface"]
        if interface is None:
            todo = "is the first host's name its loopback address? Give deepspeed --master_addr, and mend /etc/hosts"
            result.append(Row(name, "interface", FAIL, f"none leads to {master}", todo))
        else:
            text = f"{interface['name']} ({interface['address']}) towards {master}"
            result.append(Row(name, "interface", OK, text))
    if look.get("port"):
        todo = "give deepspeed another: --master_port N"
        result.append(Row(name, "port", FAIL, f"{run_.port}: {look['port']}", todo))
    elif "port" in look:
        result.append(Row(name, "port", OK, f"{run_.port} is free"))
    if look["chosen"]:
        text = " ".join(f"{key}={value}" for key, value in look["chosen"].items())
        result.append(Row(name, "environment", OK, f"unset, so training sets {text}"))
    return result


def _collectives(run_: _Run, master: str, device: str, found: list[Row]) -> None:
    requests, first = [], 0
    for host in run_.hosts:
        requests.append({"first": first, "slots": host.slots, "world": run_.world, "master": master, "port": run_.port})
        requests[-1] |= {"device": device, "timeout": _LINK_SECONDS}
        first += host.slots
    answers = ask_all(run_.targets(), "ijepa_ds.doctor.links", requests, run_.environment, _LINK_SECONDS + 30, run_.through)
    ranks: list[dict[str, Any]] = []
    for host, reply in zip(run_.hosts, answers, strict=True):
        errors = [reply.error] if reply.found is None else reply.found["errors"]
        ranks += reply.found["ranks"] if reply.found else []
        todo = f"all ranks meet at {master}:{run_.port}: a firewall, or the wrong GLOO_/NCCL_SOCKET_IFNAME?"
        found += [Row(host.name, "collectives", FAIL, error, todo) for error in errors[:3]]
    if len(ranks) < run_.world:
        return
    if run_.world == 1:
        found.append(Row(HERE, "collectives", OK, "one rank: nothing to send"))
        return
    slowest = {name: min(rank[name] for rank in ranks) for name in ("all_reduce", "all_gather")}
    text = ", ".join(f"{name.replace('_', '-')} {rate:.2f} GB/s" for name, rate in slowest.items())
    found.append(Row(HERE, "collectives", OK, f"{text} a rank over {ranks[0]['backend']}, {run_.world} ranks"))
