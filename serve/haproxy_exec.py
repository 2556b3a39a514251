"""Runs HAProxy for Ray Serve, to end with the process that started it and to show its figures here only.

It also has it say from where each request came, in `X-Forwarded-For`, and log none: the template sends a line
for each to a port of the machine's where nobody may listen.

A script by itself (`python -ISs haproxy_exec.py BINARY [HAPROXY'S ARGUMENTS]`): it imports nothing of ours.
Ray Serve leaves HAProxy, and with it the HTTP port, behind when its node is killed, and its template binds
the ports of the figures on all interfaces.
"""

import ctypes
import os
import re
import signal
import sys

PR_SET_PDEATHSIG = 1
_SECTION = re.compile(r"^(frontend prometheus|listen stats)\b")
_OTHER_SECTION = re.compile(r"^\S")
_LOG = re.compile(r"^\s+(log |option (httplog|log-health-checks)\b)")
_BIND = re.compile(r"^(\s+bind )\*?:(\d+)")


def as_ours(config: str) -> str:
    """The configuration with the sections of figures bound to 127.0.0.1, clients named, and no log."""
    lines = []
    figures = False
    for line in config.splitlines(keepends=True):
        if _LOG.match(line):
            continue
        if _OTHER_SECTION.match(line):
            figures = _SECTION.match(line) is not None
        lines.append(_BIND.sub(r"\g<1>127.0.0.1:\2", line) if figures else line)
        if line.startswith("defaults"):
            lines.append("    option forwardfor\n")
    return "".join(lines)


def main(binary: str, *arguments: str) -> None:
    """Become HAProxy, with its configuration (after `-f`) replaced by one beside it."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that started HAProxy is gone")
    given = list(arguments)
    if "-f" in given:
        place = given.index("-f") + 1
        local = f"{given[place]}.local"
        with open(given[place]) as source, open(local, "w") as target:  # noqa: PTH123 -- pathlib costs start-up
            target.write(as_ours(source.read()))
        given[place] = local
    os.execv(binary, [binary, *given])


if __name__ == "__main__":
    main(*sys.argv[1:])
