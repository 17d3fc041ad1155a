"""A SLURM cluster of two nodes on this machine: munged, slurmctld, slurmds of our own, in a folder, on ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.dist.pool import free_port
from tests.processes import die_with_parent
from tests.waiting import limit, wait_until

_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=15
MpiDefault=none
ReturnToService=2
NodeName=ij-a NodeHostname={host} NodeAddr=127.0.0.1 Port={a} CPUs={cores} State=UNKNOWN
NodeName=ij-b NodeHostname={host} NodeAddr=127.0.0.1 Port={b} CPUs={cores} State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=cancel Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=CANCEL
PartitionName=grace Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no cluster here; empty: there can."""
    missing = [name for name in _NEEDED if not shutil.which(name, path=_PATH)]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "not root"


class Slurm:
    """The cluster, until `close`."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: an empty one with a short path (munged's socket is in it) that is writable by root alone.
        """
        self._folder, self._daemons = folder, list[subprocess.Popen[bytes]]()
        host = socket.gethostname().split(".")[0]
        for name in ("munge", "state", "spool-ij-a", "spool-ij-b"):
            (folder / name).mkdir()
        key = folder / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        ports = {name: free_port() for name in ("controller", "a", "b")}
        text = _CONF.format(host=host, folder=folder, cores=os.cpu_count(), **ports)
        (folder / "slurm.conf").write_text(text)
        self.environment = os.environ | {"PATH": _PATH, "SLURM_CONF": str(folder / "slurm.conf")}
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{option}={folder}/munge/{name}" for option, name in names.items()]
        try:
            self._start("munged", "--foreground", "--force", *munge)
            self._wait_for(lambda: (folder / "munge" / "socket").exists())
            self._start("slurmctld", "-D")
            for node in ("ij-a", "ij-b"):
                self._start("slurmd", "-D", "-N", node, log=f"slurmd-{node}")
            self._wait_for(lambda: self.ask("sinfo", "--noheader", "-N", "-p", "test", "--format=%t").split() == ["idle"] * 2)
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, *options: str, log: str = "") -> None:
        with (self._folder / f"{log or name}.txt").open("wb") as file:
            command = [str(shutil.which(name, path=_PATH)), *options]
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=die_with_parent,  # when pytest is killed
            )
        self._daemons.append(process)

    def _wait_for(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        def logs() -> str:
            return "\n".join(path.read_text(errors="replace")[-2000:] for path in self._folder.glob("*.txt"))

        def holds() -> bool:
            assert all(daemon.poll() is None for daemon in self._daemons), logs()
            return condition()

        wait_until(holds, timeout, logs, pause=0.2)

    def ask(self, *command: str, check: bool = False, cwd: Path | None = None) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check, cwd=cwd)
        return done.stdout + done.stderr

    def state(self, job: str) -> dict[str, str]:
        """What SLURM says of a job."""
        words = self.ask("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for_state(self, job: str, wanted: str, timeout: float) -> None:
        """Until the job's state is `wanted`."""
        self._wait_for(lambda: self.state(job).get("JobState") == wanted, timeout)

    def close(self) -> None:
        """Cancel what runs and end the daemons, the last started first."""
        if len(self._daemons) == 4:
            self.ask("scancel", "--full", "--me")
            end = time.monotonic() + limit(120)
            while self.ask("squeue", "--noheader", "--states=RUNNING,COMPLETING").strip() and time.monotonic() < end:
                time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(limit(60))
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
