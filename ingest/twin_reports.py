"""What a device reports of itself for its twin: bytes in, a JSON merge patch or `Undecodable` out."""

from typing import Any, Final

import msgspec

from sensorium.actors.messages import Refusal
from sensorium.actors.twin_documents import MAX_DOCUMENT_BYTES
from sensorium.ingest.errors import Reason, Undecodable
from sensorium.ingest.replies import check_plain

_REASONS: Final = {
    "not_found": Reason.UNREGISTERED,
    "conflict": Reason.DECOMMISSIONED,
    "twin_too_large": Reason.TOO_LARGE,
}
_NOT_JSON: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_report(payload: bytes) -> dict[str, Any]:
    """A merge patch of the reported document. Nothing at all is an empty one, which asks what there is to do.

    Raises:
        Undecodable: it is none.
    """
    if len(payload) > MAX_DOCUMENT_BYTES:
        raise Undecodable(
            Reason.TOO_LARGE, f"{len(payload)} bytes; a report takes at most {MAX_DOCUMENT_BYTES}"
        )
    if not payload:
        return {}
    try:
        report = msgspec.json.decode(payload)
    except _NOT_JSON as error:
        detail = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Undecodable(Reason.MALFORMED_JSON, detail) from None
    if not isinstance(report, dict):
        raise Undecodable(Reason.NOT_AN_OBJECT, "a report is a JSON object")
    check_plain(report)
    return report


def unusable(refusal: Refusal) -> Undecodable:
    """Why the device did not take a report, as it stands with the dead letter."""
    return Undecodable(_REASONS.get(refusal.code, Reason.WRONG_TYPE), refusal.detail)
