"""The exceptions of the protocol adapters.

SensoriumError
├── Refused
│   ├── InvalidMessage
│   │   └── Undecodable     the payload breaks a rule of the telemetry format: dead letter it
│   ├── InvalidAddress      the broker's URL cannot be used as it is written
│   ├── InvalidContext      an OSCORE context or a file of keys cannot be used as it stands
│   └── BrokerRefused       the broker answered no: credentials, rights, a topic, a bound of its own
└── Unavailable
    └── Disconnected        there is no connection to the broker, or it broke meanwhile
"""

from enum import StrEnum

from sensorium.actors.errors import InvalidMessage, Refused, Unavailable


class Reason(StrEnum):
    """Why a message cannot be used, as it is counted and stored with the dead letter."""

    MALFORMED_JSON = "malformed_json"
    NOT_AN_OBJECT = "not_an_object"
    WRONG_TYPE = "wrong_type"
    NOT_FINITE = "not_finite"
    DUPLICATE_KEY = "duplicate_key"
    EMPTY = "empty"
    BAD_TIMESTAMP = "bad_timestamp"
    TIMESTAMP_TOO_FAR_IN_FUTURE = "timestamp_too_far_in_future"
    TIMESTAMP_TOO_OLD = "timestamp_too_old"
    TOO_LARGE = "too_large"
    TOO_MANY_METRICS = "too_many_metrics"
    BATCH_TOO_LONG = "batch_too_long"
    BAD_METRIC_NAME = "bad_metric_name"
    TEXT_TOO_LONG = "text_too_long"
    BAD_TEXT = "bad_text"
    BAD_DEVICE_ID = "bad_device_id"
    MALFORMED_CBOR = "malformed_cbor"
    MALFORMED_PROTOBUF = "malformed_protobuf"
    BAD_TOPIC = "bad_topic"
    UNKNOWN_METRIC = "unknown_metric"
    BAD_SENML = "bad_senml"
    WRONG_APPLICATION = "wrong_application"
    BAD_FRAME = "bad_frame"
    NO_CODEC = "no_codec"
    CODEC_FAILED = "codec_failed"
    CODEC_BUSY = "codec_busy"
    RATE_LIMITED = "rate_limited"
    COMMAND_REFUSED = "command_refused"
    UNREGISTERED = "unregistered"
    DECOMMISSIONED = "decommissioned"


class Undecodable(InvalidMessage):
    """A payload that is not telemetry. `reason` is for counting, `detail` for a person."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.code = str(reason)
        self.detail = detail


class InvalidAddress(Refused):
    """The broker's URL, or what goes with it, is wrong; the message says which part."""

    code = "invalid_address"


_REASONS = {
    0x80: "unspecified",
    0x84: "protocol version not supported",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorized",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x93: "receive maximum exceeded",
    0x95: "packet too large",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
}


class InvalidContext(Refused):
    """An OSCORE context or a key for DTLS is wrong or in use; the message says where and why."""

    code = "invalid_context"


class BrokerRefused(Refused):
    """The broker answered with an MQTT 5 reason code of 0x80 or more (OASIS MQTT 5.0, section 2.4)."""

    code = "broker_refused"

    def __init__(self, reason_code: int, what: str) -> None:
        words = _REASONS.get(reason_code)
        meaning = f" ({words})" if words else ""
        super().__init__(f"the broker refused {what}: reason code 0x{reason_code:02x}{meaning}")
        self.reason_code = reason_code


class Disconnected(Unavailable, ConnectionError):
    """Not connected, or the connection ended before the broker answered; the message says what is known."""
