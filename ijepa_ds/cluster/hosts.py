"""Hosts of a run: the hostfile, words that a remote shell would act on, the interface towards a host.

DeepSpeed's launcher takes any word without blanks for a host name and gives it to `ssh` as it is (`-oProxyCommand=...` runs a
program), and what stands behind the script goes through the remote shell unquoted (`deepspeed/launcher/multinode_runner.py`,
0.19). So both are looked at here, before.
"""

from __future__ import annotations

import fcntl
import re
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+")  # a name, IPv4, or IPv6
_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACTIVE = set(";&|<>$`\\\"'!*?(){}~#") | set(map(chr, range(32))) | {"\x7f"}  # what a shell does not take literally
_COMMANDS = ("$(", "`", ";", "|", "&", "<", ">", "\n", "\r", "\0")  # of them, what runs a command or writes a file
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int


def parse_hostfile(path: Path) -> list[Host]:
    """The hosts of a hostfile, in order: `NAME slots=N`, blank lines and comments (#).

    Raises:
        ValueError: with the number of every line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--hostfile {path}: cannot be read: {error}") from error
    hosts: dict[str, Host] = {}
    seen: dict[str, int] = {}
    problems = []
    for number, line in enumerate(text.split("\n"), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if not match:
            problems.append(f"{path}:{number}: expected 'NAME slots=N', found {stripped!r}")
            continue
        name, slots = match[1], int(match[2])
        if not is_host_name(name):
            problems.append(
                f"{path}:{number}: {name!r} is no host name: letters, digits, '.', '-' and '_', or an IP address (user and "
                "port belong into ~/.ssh/config)"
            )
        elif not 1 <= slots <= 1024:
            problems.append(f"{path}:{number}: slots={slots}: expected the number of its GPUs (ranks), 1 to 1024")
        elif name in hosts:
            problems.append(f"{path}:{number}: {name} again; it stands in line {seen[name]} already")
        else:
            hosts[name], seen[name] = Host(name, slots), number
    if not problems and not hosts:
        problems.append(f"{path}: no host in it; expected lines of 'NAME slots=N'")
    if problems:
        raise ValueError("\n".join(problems))
    return list(hosts.values())


def is_host_name(text: str) -> bool:
    """Whether a text can only be a host: no option of ssh, nothing that a shell acts on."""
    return len(text) <= 253 and bool(_NAME.fullmatch(text))


def check_words(words: Iterable[str]) -> None:
    """Refuse words of a command line that would run a command when a launcher hands them to a remote shell.

    Raises:
        ValueError: names each.
    """
    bad = [word for word in words if any(sign in word for sign in _COMMANDS)]
    if bad:
        raise ValueError(
            "\n".join(f"{word!r}: the shell of a remote host would run a part of this as a command" for word in bad)
            + "\nThe launcher passes the command line on unquoted (pdsh): put such a value into the YAML"
        )


def changed_by_shell(words: Iterable[str]) -> list[str]:
    """The words that another host would not get as they are: its shell would expand, unquote or cut them."""
    return [word for word in words if set(word) & _ACTIVE]


def parse_environment(path: Path) -> dict[str, str]:
    """A `.deepspeed_env`: what the launcher exports on every host, a line of NAME=value each.

    Raises:
        ValueError: lines that would break the launcher, or run a command on the hosts.
    """
    values, problems = {}, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        name, equals, value = line.partition("=")
        if not equals or not _VARIABLE.fullmatch(name.strip()):
            problems.append(f"{path}:{number}: expected NAME=value, found {line!r} (DeepSpeed takes no comments or blanks)")
        elif set(value.strip()) & set('"$`\\'):
            problems.append(f'{path}:{number}: {name.strip()}: " $ ` and \\ are not taken literally by the remote shell')
        else:
            values[name.strip()] = value.strip()
    if problems:
        raise ValueError("\n".join(problems))
    return values


class Interface(NamedTuple):
    """A network interface with its IPv4 address."""

    name: str
    address: str


def interface_towards(host: str) -> Interface | None:
    """The interface by which this machine reaches `host` (its own address: the one that has it); None: unknown or loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            local = probe.getsockname()[0]
    except OSError:
        return None
    if local.startswith("127."):
        return None
    return next((Interface(name, address) for name, address in interfaces() if address == local), None)


def interfaces() -> list[Interface]:
    """All that have an IPv4 address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has none
                continue
            found.append(Interface(name, socket.inet_ntoa(answer[20:24])))
    return found
