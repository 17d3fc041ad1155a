"""Hosts of a run: the hostfile, words that a remote shell would interpret, the network interface towards a host.

DeepSpeed's launcher accepts any word without blanks as a host name and passes it to `ssh` (`-oProxyCommand=...` runs a
program). It also passes the arguments of the script to the remote shell unquoted (`deepspeed/launcher/multinode_runner.py`,
0.19). Both are checked here first.
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

from ijepa_ds.errors import UserError

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+")  # a name, IPv4, or IPv6
_LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACTIVE = set(";&|<>$`\\\"'!*?(){}~#") | set(map(chr, range(32))) | {"\x7f"}  # characters that a shell interprets
_COMMANDS = ("$(", "`", ";", "|", "&", "<", ">", "\n", "\r", "\0")  # those that run a command or write a file
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Host:
    """A line of a hostfile."""

    name: str
    slots: int


def parse_hostfile(path: Path) -> list[Host]:
    """The hosts of a hostfile, in order. It has lines `NAME slots=N`, blank lines and comments (#).

    Raises:
        ValueError: names the number of every wrong line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {path}: cannot be read: {error}") from error
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
                f"{path}:{number}: {name!r} is not a host name: letters, digits, '.', '-' and '_', or an IP address (put user "
                "and port into ~/.ssh/config)"
            )
        elif not 1 <= slots <= 1024:
            problems.append(f"{path}:{number}: slots={slots}: expected the number of its GPUs (ranks), 1 to 1024")
        elif name in hosts:
            problems.append(f"{path}:{number}: {name} is listed twice; first in line {seen[name]}")
        else:
            hosts[name], seen[name] = Host(name, slots), number
    if not problems and not hosts:
        problems.append(f"{path}: no hosts; expected lines of 'NAME slots=N'")
    if problems:
        raise UserError("\n".join(problems))
    return list(hosts.values())


def only_other_host(path: Path) -> str:
    """The host of a hostfile that has one line, if its name leads to another machine than this one; else empty.

    DeepSpeed's launcher starts the ranks of such a file here, whatever the name is.
    """
    try:
        found = parse_hostfile(path)
    except UserError:
        return ""
    if len(found) != 1 or found[0].name in ("localhost", socket.gethostname(), socket.getfqdn()):
        return ""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(found[0].name, None)}
    except OSError:
        addresses = set()
    here = {interface.address for interface in interfaces()}
    return "" if any(one in here or one.startswith("127.") or one == "::1" for one in addresses) else found[0].name


def is_host_name(text: str) -> bool:
    """Whether a text is a valid host name or address, and so neither an option of ssh nor shell syntax."""
    return len(text) <= 253 and bool(_NAME.fullmatch(text))


def check_words(words: Iterable[str]) -> None:
    """Refuse words of a command line from which a remote shell would run a command.

    Raises:
        ValueError: names every such word.
    """
    bad = [word for word in words if any(sign in word for sign in _COMMANDS)]
    if bad:
        raise UserError(
            "\n".join(f"{word!r}: the shell of a remote host would run a part of this as a command" for word in bad)
            + "\nThe launcher does not quote the command line (pdsh): put such a value into the YAML"
        )


def changed_by_shell(words: Iterable[str]) -> list[str]:
    """The words that the shell of another host would change: expand, unquote or split."""
    return [word for word in words if set(word) & _ACTIVE]


def parse_environment(path: Path) -> dict[str, str]:
    """The variables in a `.deepspeed_env`, which the launcher exports on every host: lines of NAME=value.

    Raises:
        ValueError: names every line that would break the launcher or run a command on the hosts.
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
        raise UserError("\n".join(problems))
    return values


class Interface(NamedTuple):
    """A network interface with its IPv4 address."""

    name: str
    address: str


def interface_towards(host: str) -> Interface | None:
    """The interface through which this machine reaches `host`, which may be itself; None if unknown or the loopback."""
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
    """All interfaces that have an IPv4 address."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # no IPv4 address
                continue
            found.append(Interface(name, socket.inet_ntoa(answer[20:24])))
    return found
