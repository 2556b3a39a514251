"""Dead letters again, by the way they came: the same decoding, with the time of their receipt."""

from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

from sensorium.actors.messages import Content
from sensorium.ingest.cbor import CborDecoder
from sensorium.ingest.decode import Bounds, Telemetry, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.lorawan.adapter import LorawanAdapter, LorawanSettings
from sensorium.ingest.pipeline import Decode, Done, Pipeline, Router
from sensorium.ingest.senml import SenmlDecoder
from sensorium.ingest.sparkplug import payload as payloads
from sensorium.ingest.sparkplug.adapter import definitions_of, readings_of
from sensorium.ingest.sparkplug.address import parse
from sensorium.ingest.sparkplug.session import Definitions

_JSON_SOURCES: Final = frozenset({"mqtt", "http", "kafka", "device"})
_NO_TELEMETRY: Final = ("/twin/reported", "/response", "/status")
_BIRTHS: Final = frozenset({"NBIRTH", "DBIRTH"})
_WEBHOOK: Final = "/api/lorawan/tts/"


class Letter(Protocol):
    """A dead letter as it is stored."""

    @property
    def device_id(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def content(self) -> str: ...
    @property
    def received_ms(self) -> int: ...


class NotReplayable(Exception):
    """Why a letter stays; `code` for programs."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Replay:
    """Takes letters once more. `close` it."""

    def __init__(self, router: Router, bounds: Bounds, lorawan: LorawanSettings) -> None:
        self._pipeline = Pipeline(router, bounds, "replay", letters=False)
        uplinks = Pipeline(router, bounds, "lorawan", letters=False)
        self._lorawan = LorawanAdapter(uplinks, router, lorawan, bounds, in_order=False)
        self._telemetry = TelemetryDecoder(bounds)
        senml = SenmlDecoder(bounds)
        self._decoders: Mapping[str, Decode] = {
            Content.JSON: self._telemetry.decode,
            Content.CBOR: CborDecoder(bounds).decode,
            Content.SENML_JSON: senml.decode_json,
            Content.SENML_CBOR: senml.decode_cbor,
        }

    async def close(self) -> None:
        """End the process of the codecs."""
        await self._lorawan.close()

    def check(self, letter: Letter) -> None:
        """Raise `NotReplayable` for one that cannot be tried, or that cannot be decoded either now.

        What network servers of LoRaWAN sent is decoded when it is taken.
        """
        content = content_of(letter)
        if content is Content.OTHER:
            raise NotReplayable("not_replayable", f"what came from {letter.source} is not tried again here")
        if letter.size_bytes != len(letter.payload):
            kept = f"only {len(letter.payload)} of {letter.size_bytes} bytes were kept"
            raise NotReplayable("not_whole", kept)
        if content not in (Content.CHIRPSTACK, Content.TTS):
            try:
                self._decode(content, letter)(bytes(letter.payload), letter.received_ms)
            except Undecodable as error:
                raise NotReplayable(error.code, error.detail) from None

    async def take(self, letter: Letter, identity: int, done: Done) -> None:
        """Take one that `check` lets through; `done(None, outcome)` follows as of the first time.

        What still cannot be decoded is refused, and no new letter is written of it.

        Args:
            identity: the letter's own, which is the same however often it is tried.
        """
        payload, received_ms = bytes(letter.payload), letter.received_ms
        content = content_of(letter)
        if content is Content.CHIRPSTACK:
            await self._lorawan.chirpstack(letter.address, payload, received_ms, done, None)
        elif content is Content.TTS:
            application = _application(letter.address)
            await self._lorawan.tts(application, payload, received_ms, done, None, letter.address)
        else:
            self._pipeline.telemetry(
                *(letter.address, letter.device_id, payload, received_ms, identity, done, None),
                redelivered=True,
                decode=self._decode(content, letter),
            )

    def _decode(self, content: Content, letter: Letter) -> Decode:
        if content is Content.SPARKPLUG:
            return partial(self._sparkplug, letter.address)
        return self._decoders[content]

    def _sparkplug(self, topic: str, payload: bytes, received_ms: int) -> list[Telemetry]:
        """Births, and data that names its metrics and types: sessions are not remembered here."""
        kind, _ = parse(topic)
        said = payloads.decode(payload)
        definitions = definitions_of(said) if kind in _BIRTHS else Definitions()
        try:
            readings = readings_of(said, definitions, self._telemetry, received_ms, {})
        except Undecodable as error:
            if error.reason is not Reason.UNKNOWN_METRIC:
                raise
            raise Undecodable(
                error.reason, "its metrics have only the aliases of a birth, which is not kept with it"
            ) from None
        if not readings:
            raise Undecodable(Reason.EMPTY, "it holds no value")
        return readings


def content_of(letter: Letter) -> Content:
    """What the letter's payload is. Of letters from before that was kept, what source and address tell."""
    if letter.reason.startswith("projection:"):
        return Content.OTHER
    if letter.content:
        return Content(letter.content) if letter.content in set(Content) else Content.OTHER
    if letter.source in _JSON_SOURCES and not letter.address.endswith(_NO_TELEMETRY):
        return Content.JSON
    if letter.source == "lorawan":
        return Content.CHIRPSTACK if letter.address.startswith("application/") else Content.TTS
    return Content.SPARKPLUG if letter.source == "sparkplug" else Content.OTHER


def _application(address: str) -> str:
    """Of a webhook's path, or of a topic such as `v3/app@tenant/devices/d/up`."""
    if address.startswith(_WEBHOOK):
        return address.removeprefix(_WEBHOOK)
    parts = address.split("/")
    return parts[1].partition("@")[0] if len(parts) > 1 else ""
