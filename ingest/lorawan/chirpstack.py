"""Events of ChirpStack v4 as its MQTT integration publishes them in JSON. Bytes in, an `Event` out.

The JSON omits what has its type's default value: a missing `fCnt` is 0.
"""

import uuid
from typing import Any, Final

import msgspec

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

TOPIC: Final = "application/+/device/+/event/+"
MAX_REASON_CHARS: Final = 200
_UNCONFIRMED: Final = 0x5EC0_4D5E_0000_0000_0000_0000_0000_0001
"""Added (xor) to the ids of unconfirmed commands."""


class _Camel(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _DeviceInfo(_Camel, frozen=True):
    dev_eui: str
    device_profile_name: str = ""
    application_id: str = ""


class _RxInfo(_Camel, frozen=True):
    gateway_id: str = ""
    rssi: float = 0.0
    snr: float = 0.0


class _Common(_Camel, frozen=True):
    device_info: _DeviceInfo
    deduplication_id: str = ""
    time: str | None = None


class _Up(_Common, frozen=True):
    f_cnt: int = 0
    f_port: int = 0
    data: str = ""
    object: dict[str, Any] | None = None
    rx_info: list[_RxInfo] = []


class _Join(_Common, frozen=True):
    dev_addr: str = ""


class _Status(_Common, frozen=True):
    margin: float = 0.0
    external_power_source: bool = False
    battery_level_unavailable: bool = False
    battery_level: float = 0.0


class _TxAck(_Common, frozen=True):
    queue_item_id: str = ""
    gateway_id: str = ""


class _Log(_Common, frozen=True):
    level: str = ""
    code: str = ""
    description: str = ""
    context: dict[str, str] = {}


class _Ack(_Common, frozen=True):
    queue_item_id: str = ""
    acknowledged: bool = False
    f_cnt_down: int = 0


class _Place(_Camel, frozen=True):
    latitude: float = 0.0
    longitude: float = 0.0
    altitude: float = 0.0


class _Location(_Common, frozen=True):
    location: _Place = _Place()


_UP: Final = msgspec.json.Decoder(_Up)
_JOIN: Final = msgspec.json.Decoder(_Join)
_STATUS: Final = msgspec.json.Decoder(_Status)
_ACK: Final = msgspec.json.Decoder(_Ack)
_TXACK: Final = msgspec.json.Decoder(_TxAck)
_LOG: Final = msgspec.json.Decoder(_Log)
_LOCATION: Final = msgspec.json.Decoder(_Location)


def decode(kind: str, payload: bytes) -> Event | None:
    """The event of a topic's last level; None for kinds that say nothing of the device.

    Raises:
        Undecodable: it is not what ChirpStack sends.
    """
    match kind:
        case "up":
            up: _Up = parse(payload, _UP)
            gateways = [Gateway(rx.gateway_id, rx.rssi, rx.snr) for rx in up.rx_info]
            uplink = Uplink(up.f_port, up.f_cnt, frame_of(up.data), up.object)
            return _event(up, reception(up.f_cnt, gateways), uplink)
        case "join":
            join: _Join = parse(payload, _JOIN)
            return _event(join, {"lora_dev_addr": join.dev_addr})
        case "status":
            said: _Status = parse(payload, _STATUS)
            facts: dict[str, Any] = {
                "lora_margin": said.margin,
                "lora_external_power": said.external_power_source,
            }
            if not said.battery_level_unavailable and not said.external_power_source:
                facts["lora_battery"] = said.battery_level
            return _event(said, facts)
        case "ack":
            ack: _Ack = parse(payload, _ACK)
            facts = {"lora_ack": ack.acknowledged, "lora_fcnt_down": float(ack.f_cnt_down)}
            status, reason = ("succeeded", None) if ack.acknowledged else ("failed", "not acknowledged")
            return _event(ack, facts, heard=_heard(ack.queue_item_id, status, reason, status, reason))
        case "txack":
            sent: _TxAck = parse(payload, _TXACK)
            reason = f"transmitted by {sent.gateway_id or 'a gateway'}"
            unconfirmed = f"{reason}; the device does not confirm it"
            return _event(
                sent, {}, heard=_heard(sent.queue_item_id, "delivered", reason, "succeeded", unconfirmed)
            )
        case "log":
            log: _Log = parse(payload, _LOG)
            item = log.context.get("queue_item_id", "")
            if log.level != "ERROR" or not item:
                return None
            reason = f"{log.code}: {log.description}"[:MAX_REASON_CHARS]
            return _event(log, {}, heard=_heard(item, "failed", reason, "failed", reason))
        case "location":
            place = parse(payload, _LOCATION)
            at = place.location
            return _event(
                place,
                {"lora_latitude": at.latitude, "lora_longitude": at.longitude, "lora_altitude": at.altitude},
            )
        case _:
            return None


def _event(
    common: _Common, facts: dict[str, Any], uplink: Uplink | None = None, heard: tuple[Heard, ...] = ()
) -> Event:
    info = common.device_info
    route = {"application": info.application_id, "profile": info.device_profile_name}
    return Event(
        device_of(info.dev_eui),
        info.device_profile_name,
        common.deduplication_id,
        time_of(common.time),
        facts,
        uplink,
        heard,
        route if info.application_id and uplink is not None else None,
    )


def queue_item_of(command_id: str, *, confirmed: bool) -> str | None:
    """The id that a command has in ChirpStack's queue; None where it cannot have one.

    It says whether it is confirmed, since the event of its transmission does not.
    """
    try:
        number = uuid.UUID(hex=command_id).int
    except ValueError:
        return None
    return str(uuid.UUID(int=number if confirmed else number ^ _UNCONFIRMED))


def _heard(
    item: str, confirmed: str, reason: str | None, unconfirmed: str, unconfirmed_reason: str | None
) -> tuple[Heard, ...]:
    """What is heard of a queue item, for each of the commands that it may be; one of them is not there."""
    try:
        number = uuid.UUID(item).int
    except ValueError:
        return ()
    return (
        Heard(f"{number:032x}", confirmed, reason, certain=False),
        Heard(f"{number ^ _UNCONFIRMED:032x}", unconfirmed, unconfirmed_reason, certain=False),
    )
