"""Commands from Kafka: from a record to a command that its device has taken, or a dead letter."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

from aiokafka import ConsumerRecord

from sensorium.actors.messages import Content, Outcome, Refusal, SendCommand
from sensorium.ingest.command_requests import decode_request
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.pipeline import MAX_DEVICE_ID_CHARS, Done, Pipeline, Router, is_device_id

SOURCE: Final = "kafka-commands"
"""As it stands in dead letters: they hold no telemetry."""

Known = Callable[[list[str]], Awaitable[Iterable[str]]]
"""Which of these commands there are, also those that ended long ago. Raises LogUnavailable."""


class Asked(NamedTuple):
    """A record, and what it asks for; None: nothing of anybody here."""

    record: ConsumerRecord
    device_id: str
    message: SendCommand | Undecodable | None


class KafkaCommands:
    """Gives devices the commands of records, each once, however often its record is read.

    A device knows those of its commands that are open and a few that have ended; of all others `known` does.
    """

    def __init__(self, router: Router, known: Known) -> None:
        self._router = router
        self._letters = Pipeline(router, source=SOURCE, content=Content.OTHER)
        self._known = known
        self._taken = self._repeated = self._passed_over = 0

    async def asked(self, records: list[ConsumerRecord], received_ms: int) -> list[Asked]:
        """What the records ask for, without what was done before. Raises LogUnavailable."""
        found = [self._decoded(record, received_ms) for record in records]
        ids = [each.message.command_id for each in found if isinstance(each.message, SendCommand)]
        known = set(await self._known(ids)) if ids else set()
        left = []
        for each in found:
            if each.message is None:
                self._passed_over += 1
            elif isinstance(each.message, SendCommand) and each.message.command_id in known:
                self._repeated += 1
            else:
                left.append(each)
        return left

    def take(self, asked: Asked, received_ms: int, done: Done) -> None:
        """Hand one over; `done(None, outcome)` follows once it, or its dead letter, is committed."""
        record, device_id, message = asked
        if isinstance(message, SendCommand):
            self._taken += 1

            def ended(token: Any, outcome: Outcome) -> None:
                if isinstance(outcome, Refusal) and not outcome.dead_lettered:
                    refused = Undecodable(Reason.COMMAND_REFUSED, f"{outcome.code}: {outcome.detail}")
                    self._refuse(record, device_id, received_ms, refused, done)
                else:
                    done(token, outcome)

            self._router.message(message, ended, None)
        elif message is not None:
            self._refuse(record, device_id, received_ms, message, done)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start."""
        return {
            "commands": self._taken,
            "commands_repeated": self._repeated,
            "commands_passed_over": self._passed_over,
            "commands_refused": self._letters.statistics()["payloads"],
        }

    def _refuse(
        self, record: ConsumerRecord, device_id: str, received_ms: int, error: Undecodable, done: Done
    ) -> None:
        payload = record.value or b""
        self._letters.refuse(place(record), device_id, payload, received_ms, error, done, None)

    def _decoded(self, record: ConsumerRecord, received_ms: int) -> Asked:
        device_id = (record.key or b"").decode("utf-8", "replace")
        sent_ms = record.timestamp if 0 < record.timestamp <= received_ms else received_ms
        message: SendCommand | Undecodable | None
        try:
            if not is_device_id(device_id):
                raise Undecodable(
                    Reason.BAD_DEVICE_ID,
                    f"the key names the device: 1 to {MAX_DEVICE_ID_CHARS} characters, without /, + and #",
                )
            event_type = dict(record.headers).get("ce_type")
            message = decode_request(device_id, record.value or b"", event_type, place(record), sent_ms)
        except Undecodable as error:
            message = error
        return Asked(record, device_id, message)


def place(record: ConsumerRecord) -> str:
    """Where a record stands."""
    return f"{record.topic}/{record.partition}/{record.offset}"
