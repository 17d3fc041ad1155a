"""Two hosts on one machine: network namespaces joined by a bridge, each with its own host name and sshd.

Needs root, iproute2, openssh-server and (for pdsh launches) pdsh. Everything has a name of its own. A process beside pytest
(`python two_hosts.py TAG`) removes it all at `close`, and also when pytest was killed: then its standard input ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_NEEDED = ("ip", "sshd", "ssh-keygen", "unshare", "ssh")
_SBIN = os.environ["PATH"] + ":/usr/sbin:/sbin"


def why_not() -> str:
    """Why two hosts cannot be made here; empty: they can."""
    missing = [name for name in _NEEDED if not shutil.which(name, path=_SBIN)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "not root"
    name = f"ijt{os.getpid() % 100000}"
    if _run("ip", "netns", "add", name, check=False).returncode:
        return "network namespaces are not allowed"
    _run("ip", "netns", "del", name)
    return ""


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True, env=os.environ | {"PATH": _SBIN})


class TwoHosts:
    """Hosts `addresses[0]` and `addresses[1]`; `environment` has an `ssh` that reaches them."""

    def __init__(self, folder: Path) -> None:
        """Make them; what was made is removed again when something fails."""
        self.folder = folder
        number = os.getpid() % 250
        self._tag = f"ij{os.getpid() % 100000}"
        self.net = f"10.77.{number}"
        self.addresses = [f"{self.net}.1", f"{self.net}.2"]
        self.hostnames = [f"{self._tag}-node{i}" for i in range(2)]
        self._sshd: list[subprocess.Popen[bytes]] = []
        command = [sys.executable, __file__, self._tag]
        self._remover = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _namespace(self, i: int) -> str:
        return _namespace(self._tag, i)

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("id", "hostkey"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        shutil.copy(self.folder / "id.pub", self.folder / "authorized_keys")
        bridge = f"{self._tag}br"
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.net}.254/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        for i in range(2):
            space, veth = self._namespace(i), f"{self._tag}v{i}"
            _run("ip", "netns", "add", space)
            for name, text in (("hosts", self._hosts(i)), ("resolv.conf", "")):  # look-ups never leave the machine
                path = Path("/etc/netns") / space / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            _run("ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", veth, "master", bridge, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.addresses[i]}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            self._sshd.append(self._start_sshd(i))
        self._write_client()
        for i in range(2):
            self._wait_for_sshd(i)

    def _hosts(self, i: int) -> str:
        """As Debian has it: the own name is the loopback, which misleads gloo."""
        return f"127.0.0.1 localhost\n127.0.1.1 {self.hostnames[i]}\n"

    def _start_sshd(self, i: int) -> subprocess.Popen[bytes]:
        Path("/run/sshd").mkdir(exist_ok=True)
        options = {
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "StrictModes": "no",
            "UsePAM": "no",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "PidFile": "none",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        sshd = str(shutil.which("sshd", path=_SBIN))
        boot = self.folder / f"boot_id{i}"  # hosts are told apart by their boots
        boot.write_text(f"{self.hostnames[i]}\n")
        there = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && hostname "$0" && exec "$@"'
        inner = ["sh", "-c", there, self.hostnames[i], str(boot), sshd, "-D", "-e", "-p", "2222"]
        inner += ["-h", str(self.folder / "hostkey"), *words]
        command = ["ip", "netns", "exec", self._namespace(i), "unshare", "-u", *inner]
        with (self.folder / f"sshd{i}.log").open("wb") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def _write_client(self) -> None:
        (self.folder / "ssh_config").write_text(
            f"Host {self.net}.*\n  Port 2222\n  User root\n  IdentityFile {self.folder}/id\n  StrictHostKeyChecking no\n"
            "  UserKnownHostsFile /dev/null\n  LogLevel ERROR\n"
        )
        wrapper = self.folder / "bin" / "ssh"  # `deepspeed`, pdsh and doctor all call "ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {self.folder}/ssh_config "$@"\n')
        wrapper.chmod(0o755)
        self.environment = os.environ | {"PATH": f"{wrapper.parent}:{_SBIN}"}

    def _wait_for_sshd(self, i: int) -> None:
        from tests.waiting import wait_until

        wait_until(lambda: self.on(i, "true").returncode == 0, 120, (self.folder / f"sshd{i}.log").read_text, pause=0.2)

    def on(self, i: int, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on a host, by ssh."""
        return subprocess.run(
            ["ssh", "-o", "BatchMode=yes", self.addresses[i], *command],
            capture_output=True,
            text=True,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )

    def hostfile(self, path: Path, slots: int = 1) -> Path:
        """Write one."""
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return path

    def cut(self, i: int) -> None:
        """Take the cable out of a host."""
        _run("ip", "link", "set", f"{self._tag}v{i}", "down")

    def mend(self, i: int) -> None:
        """Put it back in."""
        _run("ip", "link", "set", f"{self._tag}v{i}", "up")

    def stop_sshd(self, i: int) -> None:
        """End a host's sshd."""
        self._sshd[i].terminate()
        self._sshd[i].wait()

    def start_sshd(self, i: int) -> None:
        """Start it again."""
        self._sshd[i] = self._start_sshd(i)
        self._wait_for_sshd(i)

    def processes(self, i: int) -> list[int]:
        """All processes in a host's network."""
        return _processes(self._namespace(i))

    def close(self) -> None:
        """Remove everything."""
        if self._remover.stdin:
            self._remover.stdin.close()
        self._remover.wait()
        for sshd in self._sshd:
            sshd.wait()


def _namespace(tag: str, i: int) -> str:
    return f"{tag}n{i}"


def _processes(namespace: str) -> list[int]:
    return [int(pid) for pid in _run("ip", "netns", "pids", namespace, check=False).stdout.split()]


def _remove(tag: str) -> None:
    """Kill what runs in the namespaces, and delete them, their files, cables and the bridge."""
    for space in (_namespace(tag, i) for i in range(2)):
        while pids := _processes(space):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _run("ip", "netns", "del", space, check=False)
        shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)
    for link in (f"{tag}v0", f"{tag}v1", f"{tag}br"):
        _run("ip", "link", "del", link, check=False)
    with contextlib.suppress(OSError):  # ours only when empty
        Path("/etc/netns").rmdir()


if __name__ == "__main__":
    sys.stdin.read()  # until pytest closes it, or ends
    _remove(sys.argv[1])
