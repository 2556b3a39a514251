"""Changes of several tables sent as one statement: one way to the server and back, however many they are."""

import re
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

from sensorium.storage.database import Connection

_PARAMETER: Final = re.compile(r"\$(\d+)")


class Change(NamedTuple):
    """An INSERT, UPDATE or DELETE, and what its parameters ($1 and on) stand for."""

    statement: str
    arguments: Sequence[Any]


def joined(changes: Sequence[Change], then: Change) -> Change:
    """All the changes, and then the SELECT `then`, as one statement.

    No change sees what another has done, and no two may change the same row.
    """
    parts = (*changes, then)
    text = _text(tuple((part.statement, len(part.arguments)) for part in parts))
    return Change(text, [argument for part in parts for argument in part.arguments])


async def apply(connection: Connection, change: Change) -> None:
    """Make a change."""
    await connection.execute(change.statement, *change.arguments)


# A host's commits are of few shapes, and each text is prepared once by a connection.
@lru_cache(maxsize=256)
def _text(parts: tuple[tuple[str, int], ...]) -> str:
    texts: list[str] = []
    before = 0
    for statement, count in parts:
        texts.append(_PARAMETER.sub(partial(_moved, before), statement))
        before += count
    *changes, then = texts
    if not changes:
        return then
    return f"WITH {', '.join(f'change_{n} AS ({text})' for n, text in enumerate(changes))} {then}"


def _moved(by: int, found: re.Match[str]) -> str:
    return f"${int(found[1]) + by}"
