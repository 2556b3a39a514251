"""How far the rollups have read, and from when on they are kept: what a question to them is planned by."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Self

import msgspec

from sensorium.storage import _history_sql as sql
from sensorium.storage.database import Connection

KNOWN_S: Final = 60.0
"""Rollups are written as often."""


class Projected(NamedTuple):
    """As the database had it at one moment.

    Attributes:
        read_from_ms: every reading that the rollups do not count was committed then or later.
        now_ms: nothing that was seen with it was committed later.
        kept_from: by table, from when on no device's rollups are gone (ms); by table and class, those of it.
    """

    read_from_ms: int
    now_ms: int
    kept_from: Mapping[str, int]

    @classmethod
    def of(cls, row: Any) -> Self | None:
        """From a row of `sql.PROJECTED`, if there is one."""
        if row is None:
            return None
        kept_from = {kind: int(ms) for kind, ms in msgspec.json.decode(row["kept_from"]).items()}
        return cls(row["read_from"], row["now"], kept_from)

    @property
    def by_class(self) -> bool:
        """Whether what is kept is not the same for all devices."""
        return any("/" in kind for kind in self.kept_from)

    def held_until(self, later: Self) -> bool:
        """Whether what was planned by this is right as of `later`, too.

        Rollups that have read further since then do not matter: which readings they do not count is looked up
        when the question is answered, among those that they had not read before.
        """
        return (
            later.kept_from == self.kept_from
            and later.read_from_ms >= self.read_from_ms
            and later.now_ms <= self.now_ms + KNOWN_S * 1000
        )


class LastProjected:
    """The newest that is known of one database."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._known_s = float("-inf")
        self._known: Projected | None = None

    async def get(self, connection: Connection) -> Projected | None:
        """What was known in the last `KNOWN_S`, or else is asked for; None: there are no rollups."""
        if self._known is None or self._now_s() - self._known_s >= KNOWN_S:
            self.know(await projected(connection))
        return self._known

    def know(self, projected: Projected | None) -> None:
        """Take what was just told."""
        self._known, self._known_s = projected, self._now_s()


async def projected(connection: Connection) -> Projected | None:
    """Ask for it; None: there are no rollups."""
    return Projected.of(await connection.fetchrow(sql.PROJECTED))
