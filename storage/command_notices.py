"""Which commands may be sent now and which have ended, as the database tells it while it happens."""

from collections.abc import AsyncIterator, Sequence
from typing import Final

import msgspec

from sensorium.actors.errors import LogUnavailable
from sensorium.actors.records import Command
from sensorium.actors.twin import TELLS_TWINS
from sensorium.storage._write_commands import ENDED_CHANNEL, READY_CHANNEL
from sensorium.storage.commands import PgCommands
from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.notices import notices
from sensorium.storage.twins import Twins

LOOK_EVERY_S: Final = 2.0
"""Notices are fast and the table is sure: what a notice did not bring is found within so long."""

PAGE: Final = 2_000

_decode_ready = msgspec.json.Decoder(list[tuple[str, str, int, str]]).decode
_decode_ended = msgspec.json.Decoder(list[Command | str]).decode


class PgReadyCommands:
    """Implements `ingest.dispatch.ReadyCommands` for one protocol over one database, which is migrated."""

    def __init__(self, dsn: str, downlink: str = "mqtt") -> None:
        self._dsn = dsn
        self._downlink = downlink

    async def watch(self) -> AsyncIterator[Sequence[tuple[str, str, int]]]:
        """Device id, command id and attempt; of twins `TWIN` and 0. Until closed, through failures of the
        database."""
        pool = await open_pool(self._dsn, 1, "sensorium-ready-commands")
        try:
            commands, twins = PgCommands(pool), Twins([pool])
            async for batch in notices(self._dsn, READY_CHANNEL, LOOK_EVERY_S):
                if batch is None:
                    try:
                        ready = await commands.ready(PAGE, self._downlink)
                        if self._downlink in TELLS_TWINS:
                            ready += await twins.ready(PAGE, self._downlink)
                        yield ready
                    except LogUnavailable:
                        continue  # the next look is due soon
                else:
                    yield [
                        (device_id, command_id, attempt)
                        for payload in batch
                        if payload
                        for device_id, command_id, attempt, downlink in _decode_ready(payload)
                        if downlink == self._downlink
                    ]
        finally:
            await close_pool(pool)


class PgEndedCommands:
    """Implements `serve.command_waits.EndedCommands` over one database, which is migrated."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    async def watch(self) -> AsyncIterator[Sequence[Command | str] | None]:
        """Commands that have ended, some by their ids only; None: look at all that are waited for."""
        async for batch in notices(self._dsn, ENDED_CHANNEL, LOOK_EVERY_S):
            if batch is None:
                yield None
            else:
                yield [ended for payload in batch if payload for ended in _decode_ended(payload)]
