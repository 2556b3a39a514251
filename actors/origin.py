"""Who asks for a change. Says nothing of whether they may."""

import getpass
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

import msgspec


class Origin(msgspec.Struct, frozen=True, array_like=True):
    """Who asks for a change, and by which way it came.

    Attributes:
        by: the name that they give; "" when they give none.
        client: the address that they ask from, or the machine.
        way: "rest", "graphql", "cli", "notebook" or "platform".
        request_id: of the request, as its answer names it.
    """

    by: str = ""
    client: str = ""
    way: str = ""
    request_id: str = ""


ASKED_BY: Final[ContextVar[Origin | None]] = ContextVar("asked_by", default=None)
"""Who asked for what is being done here; None: nobody, the platform does it by itself."""


@contextmanager
def asked_by(origin: Origin | None) -> Iterator[None]:
    """Say for a while who asked."""
    token = ASKED_BY.set(origin)
    try:
        yield
    finally:
        ASKED_BY.reset(token)


def this_user(way: str) -> Origin:
    """Who runs this process, as the operating system has it."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = ""
    return Origin(name, platform.node(), way)
