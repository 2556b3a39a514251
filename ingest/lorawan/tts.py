"""Messages of The Things Stack v3 as its webhooks send them. Bytes in, an `Event` out."""

from typing import Any, Final

import msgspec

from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.lorawan.events import (
    Event,
    Gateway,
    Heard,
    Uplink,
    device_of,
    frame_of,
    parse,
    reception,
    time_of,
)

MAX_REASON_CHARS: Final = 200
_CORRELATION: Final = "sensorium:command:"


class TtsApplicationIds(msgspec.Struct, frozen=True):
    """Whose device it is."""

    application_id: str = ""


class TtsEndDeviceIds(msgspec.Struct, frozen=True):
    """The device: its DevEUI (16 hexadecimal digits), and where commands for it go."""

    dev_eui: str
    device_id: str = ""
    application_ids: TtsApplicationIds = TtsApplicationIds()
    dev_addr: str = ""


class TtsGatewayIds(msgspec.Struct, frozen=True):
    """A gateway."""

    gateway_id: str = ""


class TtsReception(msgspec.Struct, frozen=True):
    """How a gateway heard the frame: RSSI in dBm, SNR in dB."""

    gateway_ids: TtsGatewayIds = TtsGatewayIds()
    rssi: float = 0.0
    snr: float = 0.0


class TtsVersionIds(msgspec.Struct, frozen=True):
    """What device it is: its model selects the codec, before the application does."""

    model_id: str = ""


class TtsUplink(msgspec.Struct, frozen=True):
    """A frame: `frm_payload` is base64, `decoded_payload` what The Things Stack itself made of it."""

    session_key_id: str = ""
    f_port: int = 0
    f_cnt: int = 0
    frm_payload: str = ""
    decoded_payload: dict[str, Any] | None = None
    rx_metadata: list[TtsReception] = []
    received_at: str | None = None
    version_ids: TtsVersionIds = TtsVersionIds()


class TtsJoin(msgspec.Struct, frozen=True):
    """The device has joined the network."""

    session_key_id: str = ""
    received_at: str | None = None


class TtsPlace(msgspec.Struct, frozen=True):
    """Degrees, and metres above the sea."""

    latitude: float = 0.0
    longitude: float = 0.0
    altitude: float = 0.0


class TtsLocation(msgspec.Struct, frozen=True):
    """Where the network has found the device."""

    location: TtsPlace = TtsPlace()


class TtsDownlink(msgspec.Struct, frozen=True):
    """A frame to the device; what is said of a command has its id among `correlation_ids`."""

    correlation_ids: list[str] = []
    confirmed: bool = False


class TtsError(msgspec.Struct, frozen=True):
    """Why it failed."""

    name: str = ""
    message_format: str = ""


class TtsFailed(msgspec.Struct, frozen=True):
    """A frame to the device that came to nothing."""

    downlink: TtsDownlink = TtsDownlink()
    error: TtsError = TtsError()


class TtsMessage(msgspec.Struct, frozen=True):
    """What The Things Stack v3 says of a device: one of the members below. What else it says is ignored."""

    end_device_ids: TtsEndDeviceIds
    received_at: str | None = None
    uplink_message: TtsUplink | None = None
    join_accept: TtsJoin | None = None
    location_solved: TtsLocation | None = None
    downlink_queued: TtsDownlink | None = None
    downlink_sent: TtsDownlink | None = None
    downlink_ack: TtsDownlink | None = None
    downlink_nack: TtsDownlink | None = None
    downlink_failed: TtsFailed | None = None


_DECODER: Final = msgspec.json.Decoder(TtsMessage)


def decode(payload: bytes, application: str) -> Event | None:
    """The event of a webhook's body; None for kinds that are not used.

    Raises:
        Undecodable: it is not what The Things Stack sends, or it is of another application.
    """
    message: TtsMessage = parse(payload, _DECODER)
    ids = message.end_device_ids
    if ids.application_ids.application_id != application:
        raise Undecodable(
            Reason.WRONG_APPLICATION,
            f"of {ids.application_ids.application_id[:40]!r}, sent to the webhook of {application[:40]!r}",
        )
    device_id = device_of(ids.dev_eui)
    up, join, solved = message.uplink_message, message.join_accept, message.location_solved
    if up is not None:
        gateways = [Gateway(rx.gateway_ids.gateway_id, rx.rssi, rx.snr) for rx in up.rx_metadata]
        return Event(
            device_id,
            up.version_ids.model_id or application,
            f"{up.session_key_id}|{up.f_cnt}" if up.session_key_id else "",
            time_of(up.received_at or message.received_at),
            reception(up.f_cnt, gateways),
            Uplink(up.f_port, up.f_cnt, frame_of(up.frm_payload), up.decoded_payload),
            route={
                "application": application,
                "device": ids.device_id,
                "profile": up.version_ids.model_id or application,
            }
            if ids.device_id
            else None,
        )
    if join is not None:
        time_ms = time_of(join.received_at or message.received_at)
        identity = f"{join.session_key_id}|join" if join.session_key_id else ""
        return Event(device_id, application, identity, time_ms, {"lora_dev_addr": ids.dev_addr})
    if solved is not None:
        at = solved.location
        return Event(
            device_id,
            application,
            f"{message.received_at}|location" if message.received_at else "",
            time_of(message.received_at),
            {"lora_latitude": at.latitude, "lora_longitude": at.longitude, "lora_altitude": at.altitude},
        )
    heard = _heard(message)
    return Event(device_id, application, "", None, {}, heard=heard) if heard else None


def correlation_of(command_id: str) -> str:
    """The correlation id by which a downlink is recognised in what is said of it."""
    return f"{_CORRELATION}{command_id}"


def _heard(message: TtsMessage) -> tuple[Heard, ...]:
    failed = message.downlink_failed
    for downlink, status, reason in (
        (message.downlink_ack, "succeeded", None),
        (message.downlink_nack, "failed", "not acknowledged"),
        (None if failed is None else failed.downlink, "failed", _said(failed)),
        (message.downlink_sent, "delivered", "transmitted"),
    ):
        if downlink is None:
            continue
        if status == "delivered" and not downlink.confirmed:
            status, reason = "succeeded", "transmitted; the device does not confirm it"
        return tuple(
            Heard(said.removeprefix(_CORRELATION), status, reason)
            for said in downlink.correlation_ids
            if said.startswith(_CORRELATION)
        )
    return ()


def _said(failed: TtsFailed | None) -> str:
    error = TtsError() if failed is None else failed.error
    return f"{error.name}: {error.message_format}"[:MAX_REASON_CHARS] if error.name else "failed"
