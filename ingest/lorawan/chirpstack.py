"""Events of ChirpStack v4 as its MQTT integration publishes them in JSON. Bytes in, an `Event` out.

The JSON omits what has its type's default value: a missing `fCnt` is 0.
"""

from typing import Any, Final

import msgspec

from sensorium.ingest.lorawan.events import (
    Event,
    Gateway,
    Uplink,
    device_of,
    frame_of,
    parse,
    reception,
    time_of,
)

TOPIC: Final = "application/+/device/+/event/+"


class _Camel(msgspec.Struct, frozen=True, rename="camel"):
    pass


class _DeviceInfo(_Camel, frozen=True):
    dev_eui: str
    device_profile_name: str = ""


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


class _Ack(_Common, frozen=True):
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
_LOCATION: Final = msgspec.json.Decoder(_Location)


def decode(kind: str, payload: bytes) -> Event | None:
    """The event of a topic's last level; None for kinds that say nothing of the device (txack, log, …).

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
            status: _Status = parse(payload, _STATUS)
            facts: dict[str, Any] = {
                "lora_margin": status.margin,
                "lora_external_power": status.external_power_source,
            }
            if not status.battery_level_unavailable and not status.external_power_source:
                facts["lora_battery"] = status.battery_level
            return _event(status, facts)
        case "ack":
            ack: _Ack = parse(payload, _ACK)
            return _event(ack, {"lora_ack": ack.acknowledged, "lora_fcnt_down": float(ack.f_cnt_down)})
        case "location":
            place = parse(payload, _LOCATION)
            at = place.location
            return _event(
                place,
                {"lora_latitude": at.latitude, "lora_longitude": at.longitude, "lora_altitude": at.altitude},
            )
        case _:
            return None


def _event(common: _Common, facts: dict[str, Any], uplink: Uplink | None = None) -> Event:
    return Event(
        device_of(common.device_info.dev_eui),
        common.device_info.device_profile_name,
        common.deduplication_id,
        time_of(common.time),
        facts,
        uplink,
    )
