"""Becomes the PostgreSQL server: drops root, asks to be stopped when the parent dies, executes. A script.

Run apart from the parent's threads because nothing but this may happen between fork and exec, and in this
order: the kernel forgets the parent-death signal when the user changes.

Usage: _postgres_child.py PARENT_PID UID GID SERVER ARGUMENT…
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Never returns."""
    parent, uid, gid = (int(argument) for argument in sys.argv[1:4])
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # SIGINT asks the server for a fast, clean shutdown.
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGINT, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the parent is gone")
    os.execv(sys.argv[4], sys.argv[4:])


main()
