"""Ids that devices give their messages, by which a repetition is recognised. Bytes in, values out.

The id is the user property `message_id` of MQTT 5, or the member `message_id` of the object that is sent: a
text, or a whole number up to 2^53. In an array each object may have one.
"""

from hashlib import blake2b
from typing import Final, NamedTuple

from sensorium.actors.messages import Value
from sensorium.ingest.decode import Telemetry
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.mqtt_wire import Properties

NAME: Final = "message_id"
IN_PAYLOAD: Final = b'"message_id"'
"""Where this does not stand, there is no such member."""
MAX_ID_CHARS: Final = 256
_EXACT: Final = 2.0**53


class Identified(NamedTuple):
    """Readings without their ids, and the signed 64-bit number that stands for the message; None: no id."""

    readings: list[Telemetry]
    identity: int | None


def identified(device_id: str, decoded: list[Telemetry], properties: Properties | None) -> Identified:
    """Take the ids out of a message's readings. The user property counts for the whole message.

    Raises:
        Undecodable: an id cannot be one, or there is nothing besides it.
    """
    said = [value for name, value in (properties or {}).get("user_property", ()) if name == NAME]
    of_message = [_said(said[0])] if said else []
    of_readings = []
    readings = []
    for time_ms, names, values, own_time in decoded:
        if NAME in names:
            at = names.index(NAME)
            of_readings.append(_said(values[at]))
            names, values = names[:at] + names[at + 1 :], values[:at] + values[at + 1 :]
            if not names:
                raise Undecodable(Reason.EMPTY, f"there is no metric besides {NAME}")
        readings.append((time_ms, names, values, own_time))
    if of_readings and len(of_readings) < len(readings):
        raise Undecodable(Reason.WRONG_TYPE, f"some objects of the array have a {NAME}, some have none")
    ids = of_message or of_readings
    if not ids:
        return Identified(readings, None)
    digest = blake2b("\0".join([device_id, *ids]).encode(errors="surrogatepass"), digest_size=8).digest()
    return Identified(readings, int.from_bytes(digest, "big", signed=True))


def _said(value: Value) -> str:
    if type(value) is float and value.is_integer() and abs(value) <= _EXACT:
        return f"{value:.0f}"
    if type(value) is not str or not 1 <= len(value) <= MAX_ID_CHARS:
        raise Undecodable(
            Reason.WRONG_TYPE,
            f"{NAME} is a text of 1 to {MAX_ID_CHARS} characters, or a whole number up to 2^53",
        )
    return value
