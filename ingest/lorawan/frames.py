"""From a command to a frame of a class A device: raw, by a layout, or by the vendor's own encoder."""

import base64
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sensorium.actors.messages import Telling
from sensorium.ingest.dispatch import Untold
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.lorawan import layout
from sensorium.ingest.lorawan.adapter import DEFAULT, Codec, CommandLayout, ScriptCodec
from sensorium.ingest.lorawan.scripts import MAX_PORT, ScriptCodecs

RAW: Final = "downlink"
"""The command whose parameters are the frame itself."""
MAX_FRAME_BYTES: Final = 242
"""No data rate takes more (LoRaWAN Regional Parameters 1.0.4)."""


TWIN: Final = "twin"
"""The command by which a profile may say how a frame of its devices' twins is laid out."""


class Frame(msgspec.Struct, frozen=True):
    """What is queued for a device: its payload, or an object that the network server encodes."""

    port: int
    payload: bytes
    confirmed: bool
    object: dict[str, Any] | None = None


class FrameEncoder:
    """Makes frames by the codecs of devices' profiles. `close` it."""

    def __init__(
        self, codecs: Mapping[str, Codec], commands: Mapping[str, Mapping[str, CommandLayout]]
    ) -> None:
        self._codecs = codecs
        self._commands = commands
        self._scripts = ScriptCodecs(
            {name: codec.source for name, codec in codecs.items() if isinstance(codec, ScriptCodec)}
        )

    async def close(self) -> None:
        """End the process of the codecs."""
        await self._scripts.close()

    async def encode(self, telling: Telling, profile: str) -> Frame:
        """The frame of a command. Raises `Untold` where there cannot be one."""
        try:
            frame = await self._frame(telling, profile)
        except Undecodable as error:
            # Too many that wait for the codecs is no fault of the command.
            raise Untold(error.detail, final=error.reason is not Reason.CODEC_BUSY) from None
        if len(frame.payload) > MAX_FRAME_BYTES:
            raise Untold(f"a frame takes {MAX_FRAME_BYTES} bytes, not {len(frame.payload)}", final=True)
        return frame

    async def _frame(self, telling: Telling, profile: str) -> Frame:
        values = dict(telling.parameters)
        if telling.command == RAW:
            return _raw(values)
        for name in (profile, DEFAULT):
            known = self._commands.get(name, {}).get(telling.command)
            if known is not None:
                return Frame(known.port, layout.encode(known.fields, values), known.confirmed)
        name = profile if profile in self._codecs else DEFAULT
        if not isinstance(self._codecs.get(name), ScriptCodec):
            raise Untold(
                f"no codec of profile {profile[:60]!r} encodes {telling.command[:60]!r}; "
                f"{RAW!r} takes f_port and hex",
                final=True,
            )
        # A twin is told again until it is reported.
        confirmed = _flag(values.pop("confirmed", telling.command != TWIN))
        port, payload = await self._scripts.encode(name, values, _port(values.pop("f_port", 1)))
        return Frame(port, payload, confirmed)


def _raw(parameters: dict[str, Any]) -> Frame:
    port, confirmed = _port(parameters.pop("f_port", None)), _flag(parameters.pop("confirmed", True))
    match parameters:
        case {"hex": str(text), **rest} if not rest:
            try:
                return Frame(port, bytes.fromhex(text), confirmed)
            except ValueError:
                raise _wrong("hex is not hexadecimal") from None
        case {"base64": str(text), **rest} if not rest:
            try:
                return Frame(port, base64.b64decode(text, validate=True), confirmed)
            except (Base64Error, ValueError):
                raise _wrong("base64 is not base64") from None
        case {"object": dict(value), **rest} if not rest:
            return Frame(port, b"", confirmed, value)
        case _:
            raise _wrong("the parameters are f_port, one of hex, base64 and object, and confirmed")


def _port(port: Any) -> int:
    if type(port) is not int or not 1 <= port <= MAX_PORT:
        raise _wrong(f"f_port is 1 to {MAX_PORT}")
    return port


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise _wrong("confirmed is true or false")
    return value


def _wrong(detail: str) -> Undecodable:
    return Undecodable(Reason.WRONG_TYPE, detail)
