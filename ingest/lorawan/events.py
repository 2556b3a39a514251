"""What a LoRaWAN network server says of a device, whichever server it is."""

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from sensorium.actors.messages import Value
from sensorium.ingest.decode import iso_ms
from sensorium.ingest.errors import Reason, Undecodable

_DEV_EUI: Final = re.compile(r"[0-9a-fA-F]{16}")


class Uplink(msgspec.Struct, frozen=True):
    """A frame of a device.

    Attributes:
        port, counter: fPort and fCnt.
        frame: the decrypted payload.
        decoded: what the network server made of it, if it has a codec of its own.
    """

    port: int
    counter: int
    frame: bytes
    decoded: dict[str, Any] | None


class Heard(msgspec.Struct, frozen=True):
    """What became of a downlink: `status` as in `CommandReply`.

    Attributes:
        certain: whether the command is known to be one of ours.
    """

    command_id: str
    status: str
    reason: str | None = None
    certain: bool = True


class Event(msgspec.Struct, frozen=True):
    """One message of a network server.

    Attributes:
        device_id: the DevEUI, 16 lower-case hexadecimal digits.
        profile: the device's profile or model at the network server, which selects the codec.
        identity: the same for each delivery of this event, whichever gateways heard it; "" if there is none.
        time_ms: when the network server received it; None when it does not say.
        facts: what is known besides the frame, as metrics.
        uplink: the frame; None for events of other kinds.
        heard: what the event says of downlinks.
        route: where the network server finds the device, for commands; None where the event does not say.
    """

    device_id: str
    profile: str
    identity: str
    time_ms: int | None
    facts: dict[str, Value]
    uplink: Uplink | None = None
    heard: tuple[Heard, ...] = ()
    route: dict[str, Any] | None = None


class Gateway(msgspec.Struct, frozen=True):
    """A gateway that heard a frame: RSSI in dBm, SNR in dB."""

    gateway_id: str
    rssi: float
    snr: float


def reception(counter: int, gateways: Iterable[Gateway]) -> dict[str, Value]:
    """The metrics that are kept with an uplink's reading: of the gateway that heard it best."""
    facts: dict[str, Value] = {"lora_fcnt": float(counter)}
    heard = list(gateways)
    if heard:
        best = max(heard, key=lambda gateway: (gateway.snr, gateway.rssi))
        facts |= {"lora_rssi": best.rssi, "lora_snr": best.snr, "lora_gateways": float(len(heard))}
        if best.gateway_id:
            facts["lora_gateway"] = best.gateway_id
    return facts


def device_of(dev_eui: str) -> str:
    """The device id of a DevEUI. Raises `Undecodable`."""
    if not _DEV_EUI.fullmatch(dev_eui):
        raise Undecodable(Reason.BAD_DEVICE_ID, f"{dev_eui[:40]!r} is no DevEUI of 16 hexadecimal digits")
    return dev_eui.lower()


def time_of(stamp: str | None) -> int | None:
    """Milliseconds since 1970. Raises `Undecodable`."""
    return iso_ms(stamp) if stamp else None


def frame_of(text: str) -> bytes:
    """A payload's bytes from base64. Raises `Undecodable`."""
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise Undecodable(Reason.WRONG_TYPE, "the frame is not base64") from None


def parse(payload: bytes, decoder: "msgspec.json.Decoder[Any]") -> Any:
    """JSON of a known structure. Raises `Undecodable`."""
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        raise Undecodable(Reason.WRONG_TYPE, str(error)[:200]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Undecodable(Reason.MALFORMED_JSON, str(error)[:200]) from None
