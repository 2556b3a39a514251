"""A network of machines in this machine: a namespace and an address for each, on a bridge, that can be cut.

Cuts are made where a sender looks up its neighbour: to one whose hardware address is wrong, packets leave and
never arrive, as behind a switch that has lost its table. So each direction between two is cut by itself,
nobody is told, connections stay open, and it takes no packet filter.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Final, Self

import psutil

HERE: Final = "here"
"""The tests' own place in a network; it has no namespace of its own."""

_PREFIX: Final = "sens"
_NOWHERE: Final = "02:00:00:00:ff:ff"


class Network:
    """Machines by name with an address each, all in reach of each other. `with` it: all goes at the end.

    Args:
        machines: their names; each gets a namespace.
        services: further addresses of `HERE`, by name: a database, a broker. A machine can be cut from one.

    Attributes:
        address: by the name of a machine, of a service, or `HERE`.
        subnet: all of them, as PostgreSQL takes it.
    """

    def __init__(self, machines: Iterable[str], services: Iterable[str] = ()) -> None:
        self.machines = list(machines)
        number = os.getpid() % 250 + 1
        self.subnet = f"10.213.{number}.0/24"
        self._services = list(services)
        places = [HERE, *self._services, *self.machines]
        self.address = {place: f"10.213.{number}.{n}" for n, place in enumerate(places, 1)}
        self._hardware = {
            place: f"02:00:00:00:{number:02x}:{1 if place in self._services else n:02x}"
            for n, place in enumerate(places, 1)
        }
        self._bridge = f"{_PREFIX}{os.getpid()}-switch"

    def __enter__(self) -> Self:
        _sweep()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def inside(self, machine: str) -> list[str]:
        """The command that runs another on that machine."""
        return ["ip", "netns", "exec", self._namespace(machine)]

    def cut(self, sender: str, receiver: str) -> None:
        """What the sender sends there is lost from now on. The receiver may be a service."""
        self._neighbour(sender, receiver, _NOWHERE)

    def cut_off(self, machine: str, *, sending: bool = True, receiving: bool = True) -> None:
        """Nothing that the machine sends arrives anywhere, or nothing reaches it, or both."""
        for other in self.address:
            if other != machine:
                if sending:
                    self.cut(machine, other)
                if receiving and other not in self._services:
                    self.cut(other, machine)

    def heal(self) -> None:
        """Everything arrives again."""
        for sender, receiver in permutations(self.address, 2):
            self._neighbour(sender, receiver, self._hardware[receiver])

    def close(self) -> None:
        """Take it all away, and end what still runs in it."""
        for name in [self._namespace(machine) for machine in self.machines] + [self._bridge]:
            _remove(name)
        # A namespace goes in its own time, and the link of `HERE` with the bridge's.
        if Path("/sys/class/net", self._link(HERE)).exists():
            _ip("link", "delete", self._link(HERE))

    def _make(self) -> None:
        for name in [self._bridge, *map(self._namespace, self.machines)]:
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", self._bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._bridge, "link", "set", "br0", "up")
        for n, place in enumerate([HERE, *self.machines]):
            self._plug_in(place, f"port{n}")
        for service in self._services:
            _ip("address", "add", f"{self.address[service]}/24", "dev", self._link(HERE))
        self.heal()

    def _plug_in(self, place: str, port: str) -> None:
        own = [] if place == HERE else ["netns", self._namespace(place)]
        link = self._link(place)
        peer = ["peer", "name", port, "netns", self._bridge]
        _ip("link", "add", link, "address", self._hardware[place], *own, "type", "veth", *peer)
        _ip("-n", self._bridge, "link", "set", port, "master", "br0", "up")
        _ip(*self._at(place), "address", "add", f"{self.address[place]}/24", "dev", link)
        _ip(*self._at(place), "link", "set", link, "up")
        if place != HERE:
            # Ray takes the address by which it would leave for the Internet. Nobody is there.
            nobody = self.subnet.replace(".0/24", ".254")
            _ip(*self._at(place), "route", "add", "default", "via", nobody)

    def _neighbour(self, sender: str, receiver: str, hardware: str) -> None:
        if {sender, receiver} <= {HERE, *self._services} or sender in self._services:
            return
        entry = (self.address[receiver], "lladdr", hardware, "nud", "permanent", "dev", self._link(sender))
        _ip(*self._at(sender), "neighbour", "replace", *entry)

    def _at(self, place: str) -> list[str]:
        return [] if place == HERE else ["-n", self._namespace(place)]

    def _link(self, place: str) -> str:
        return f"{_PREFIX}{os.getpid()}" if place == HERE else "eth0"

    def _namespace(self, machine: str) -> str:
        return f"{_PREFIX}{os.getpid()}-{machine}"


@cache
def why_not() -> str | None:
    """Why no network can be made here; None when one can."""
    name = f"{_PREFIX}{os.getpid()}-try"
    try:
        _ip("netns", "add", name)
        try:
            _ip("-n", name, "link", "add", "br0", "type", "bridge")
            _ip("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "port0")
        finally:
            _ip("netns", "delete", name)
    except FileNotFoundError:
        return "needs the command ip (Debian: iproute2)"
    except AssertionError as error:
        return f"network namespaces cannot be made here ({error})"
    return None


def _sweep() -> None:
    """Take away what a test run that was killed has left behind."""
    for file in Path("/run/netns").glob(f"{_PREFIX}*-*"):
        made_by = re.fullmatch(rf"{_PREFIX}(\d+)-.*", file.name)
        if made_by and not psutil.pid_exists(int(made_by[1])):
            _remove(file.name)


def _remove(name: str) -> None:
    if Path("/run/netns", name).exists():
        for pid in _ip("netns", "pids", name).split():
            with suppress(psutil.NoSuchProcess):
                psutil.Process(int(pid)).kill()
        _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout
