"""From a network server's message to a committed reading: parses, decodes the frame, adds what is known."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec

from sensorium.actors.messages import ACCEPTED, CommandReply, Content, Outcome, Value
from sensorium.ingest.cbor import value_of
from sensorium.ingest.decode import Bounds, TelemetryDecoder
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.lorawan import cayenne, chirpstack, layout, tts
from sensorium.ingest.lorawan.events import Event
from sensorium.ingest.lorawan.scripts import ScriptCodecs
from sensorium.ingest.pipeline import Done, Pipeline, Router
from sensorium.ingest.routes import Routes

CHIRPSTACK: Final = "chirpstack"
TTS: Final = "tts"
DEFAULT: Final = "default"
"""The codec of profiles that have none of their own."""
KNOWN_COUNTERS: Final = 65_536
"""Devices whose last frame counter is remembered."""
MAX_WAITING: Final = 20_000
"""Messages that wait for their turn; beyond it they become dead letters, to be replayed."""
_MAX_DEPTH: Final = 5


class CayenneCodec(msgspec.Struct, frozen=True, tag="cayenne"):
    """Cayenne LPP."""


class LayoutCodec(msgspec.Struct, frozen=True, tag="layout"):
    """A declarative layout."""

    fields: tuple[layout.Field, ...]


class ScriptCodec(msgspec.Struct, frozen=True, tag="javascript"):
    """A vendor's codec: `decodeUplink` of TS013, or the older `Decoder` or `Decode`."""

    source: str


class CommandLayout(msgspec.Struct, frozen=True):
    """How the frame of one command is made."""

    port: int
    fields: tuple[layout.Field, ...]
    confirmed: bool = True


Codec = CayenneCodec | LayoutCodec | ScriptCodec


class LorawanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the ways in from LoRaWAN need to know.

    Attributes:
        codecs: by the name that the network server gives the device's profile (ChirpStack) or model, or else
            the application (The Things Stack); "default" for all others.
        commands: by the same name, and by that of the command.
        chirpstack: whether to subscribe to ChirpStack's events.
        tts_secret: what webhooks of The Things Stack must send; None: there is no such webhook.
    """

    codecs: dict[str, Codec] = {}
    commands: dict[str, dict[str, CommandLayout]] = {}
    chirpstack: bool = False
    tts_secret: str | None = None


class LorawanAdapter:
    """Takes messages of network servers, in order. `close` it.

    Args:
        in_order: whether they come as they were sent, so that frame counters tell of resets.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        router: Router,
        settings: LorawanSettings,
        bounds: Bounds | None = None,
        *,
        in_order: bool = True,
    ) -> None:
        self._in_order = in_order
        self._pipeline = pipeline
        self._router = router
        self._routes = {downlink: Routes(router, downlink) for downlink in (CHIRPSTACK, TTS)}
        self._codecs = settings.codecs
        self._telemetry = TelemetryDecoder(bounds)
        self._scripts = ScriptCodecs(
            {name: codec.source for name, codec in settings.codecs.items() if isinstance(codec, ScriptCodec)}
        )
        self._counters: OrderedDict[str, int] = OrderedDict()
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._counts: Counter[str] = Counter()

    def codec_of(self, profile: str) -> tuple[str, str, str] | None:
        """Name, kind and version of the codec for a profile; None where the network server decodes.

        The version is a hash of what the codec says, so it changes with it.
        """
        name = profile if profile in self._codecs else DEFAULT
        codec = self._codecs.get(name)
        if codec is None:
            return None
        written = msgspec.json.encode(codec)
        kind: str = msgspec.to_builtins(codec)["type"]
        return name, kind, sha256(written).hexdigest()[:12]

    async def close(self) -> None:
        """End the process of the codecs."""
        await self._scripts.close()

    async def chirpstack(self, topic: str, payload: bytes, received_ms: int, done: Done, token: Any) -> None:
        """Take a message of ChirpStack's MQTT integration; `done` follows as in `Pipeline.telemetry`.

        What says nothing of a device is done at once. Returns when the message is on its way.
        """
        kind = topic.rpartition("/")[2]
        await self._take(
            lambda: chirpstack.decode(kind, payload), CHIRPSTACK, topic, payload, received_ms, done, token
        )

    async def tts(
        self,
        application: str,
        payload: bytes,
        received_ms: int,
        done: Done,
        token: Any,
        address: str | None = None,
    ) -> None:
        """Take a message of The Things Stack as `chirpstack` does; `address`: its topic, if no webhook's."""
        if address is None:
            address = f"/api/lorawan/tts/{application}"
        await self._take(
            lambda: tts.decode(payload, application), TTS, address, payload, received_ms, done, token
        )

    async def _take(
        self,
        parse: Callable[[], Event | None],
        downlink: str,
        address: str,
        payload: bytes,
        received_ms: int,
        done: Done,
        token: Any,
    ) -> None:
        device_id = ""
        content = Content.CHIRPSTACK if downlink == CHIRPSTACK else Content.TTS
        waiting = self._waiting
        self._waiting += 1
        try:
            # The lock is fair, so that frames stay in order whatever their codecs take.
            async with self._turn:
                if waiting >= MAX_WAITING:
                    raise Undecodable(Reason.CODEC_BUSY, f"{MAX_WAITING} messages wait for their codecs")
                if len(payload) > self._telemetry.bounds.max_payload_bytes:
                    raise Undecodable(Reason.TOO_LARGE, f"{len(payload)} bytes")
                event = parse()
                if event is None:
                    self._counts["ignored"] += 1
                    done(token, ACCEPTED)
                    return
                device_id = event.device_id
                if event.uplink is None and not event.facts:
                    self._hear(event, received_ms, done, token)
                    return
                if event.heard:
                    self._hear(event, received_ms, _nothing, None)
                if event.uplink is not None:
                    self._pipeline.check_rate(device_id, received_ms)
                metrics = await self._metrics(event, received_ms)
                reading = self._telemetry.reading(
                    metrics, received_ms, event.time_ms, own_time=False, units=self._units(event, metrics)
                )
                self._counts["events"] += 1
                # The identity alone decides what is a repetition: another gateway's copy has other content.
                identity = event.identity.encode() or payload
                redelivery = blake2b(device_id.encode() + identity, digest_size=8).digest()
                self._pipeline.telemetry(
                    address,
                    device_id,
                    identity,
                    received_ms,
                    int.from_bytes(redelivery, "big"),
                    done,
                    token,
                    redelivered=True,
                    decode=lambda _, __: [reading],
                    content=content,
                )
                if event.route is not None:
                    self._routes[downlink].tell(device_id, event.route)
        except Undecodable as error:
            self._pipeline.refuse(address, device_id, payload, received_ms, error, done, token, content)
        finally:
            self._waiting -= 1

    def _hear(self, event: Event, received_ms: int, done: Done, token: Any) -> None:
        """Tell the device what is said of its commands; `done` follows as for all else."""
        replies = [
            CommandReply(
                *(event.device_id, heard.command_id, heard.status, received_ms, None, heard.reason),
                certain=heard.certain,
            )
            for heard in event.heard
        ]
        self._counts["replies"] += bool(replies)
        for reply in replies[:-1]:
            self._router.message(reply, _nothing, None)
        if replies:
            # What is committed for one device is so in order.
            self._router.message(replies[-1], done, token)
        else:
            done(token, ACCEPTED)

    async def _metrics(self, event: Event, received_ms: int) -> dict[str, Value]:
        if event.uplink is None:
            if "lora_dev_addr" in event.facts:
                self._counters.pop(event.device_id, None)
            return event.facts
        metrics: dict[str, Value] = {}
        for name, value in _flat(await self._decoded(event, received_ms)):
            metrics[name] = value_of(value, name)
        metrics |= event.facts
        if self._is_reset(event.device_id, event.uplink.counter):
            self._counts["counter_resets"] += 1
            metrics["lora_fcnt_reset"] = True
        return metrics

    async def _decoded(self, event: Event, received_ms: int) -> Mapping[str, Any]:
        uplink = event.uplink
        assert uplink is not None
        name = self._codec_of(event)
        match self._codecs.get(name):
            case _ if not uplink.frame and not uplink.decoded:
                return {}
            case CayenneCodec():
                return cayenne.decode(uplink.frame)
            case LayoutCodec(fields):
                return layout.decode(fields, uplink.port, uplink.frame)
            case ScriptCodec():
                return await self._scripts.decode(name, uplink.port, uplink.frame, received_ms)
            case _ if uplink.decoded:
                return uplink.decoded
            case _:
                raise Undecodable(
                    Reason.NO_CODEC, f"no codec for profile {event.profile[:40]!r}, and none is the default"
                )

    def _codec_of(self, event: Event) -> str:
        return event.profile if event.profile in self._codecs else DEFAULT

    def _units(self, event: Event, metrics: Mapping[str, Value]) -> dict[str, str]:
        """The units that the codec knows; scripts have none, nor have network servers that decode."""
        if event.uplink is None or not event.uplink.frame:
            return {}
        match self._codecs.get(self._codec_of(event)):
            case CayenneCodec():
                return cayenne.units(metrics)
            case LayoutCodec(fields):
                return layout.units(fields)
            case _:
                return {}

    def _is_reset(self, device_id: str, counter: int) -> bool:
        before = self._counters.pop(device_id, -1)
        self._counters[device_id] = counter
        if len(self._counters) > KNOWN_COUNTERS:
            self._counters.popitem(last=False)
        return self._in_order and counter < before

    def statistics(self) -> dict[str, Any]:
        """Counts since the start: events, those ignored, replies, counter resets; and of the scripts."""
        return {
            "events": self._counts["events"],
            "ignored": self._counts["ignored"],
            "replies": self._counts["replies"],
            "counter_resets": self._counts["counter_resets"],
            "waiting": self._waiting,
            "scripts": self._scripts.statistics(),
        }


def _nothing(_: Any, __: Outcome) -> None:
    return None


def _flat(decoded: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Nested objects and arrays as one level, `a.b` and `a.0`; nulls are left out."""
    if depth >= _MAX_DEPTH:
        raise Undecodable(Reason.WRONG_TYPE, f"the decoded object is deeper than {_MAX_DEPTH} levels")
    for key, value in decoded.items():
        if type(value) is dict:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        elif type(value) is list:
            members = {str(index): member for index, member in enumerate(value)}
            yield from _flat(members, f"{prefix}{key}.", depth + 1)
        elif value is not None:
            yield f"{prefix}{key}", value
