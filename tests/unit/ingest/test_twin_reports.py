"""Reports of devices: any bytes are a merge patch or a documented error."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.actors.messages import Refusal
from sensorium.actors.twin_documents import MAX_DOCUMENT_BYTES
from sensorium.ingest.errors import Undecodable
from sensorium.ingest.twin_reports import decode_report, unusable


def test_reports() -> None:
    assert decode_report(b"") == decode_report(b" {} ") == {}
    assert decode_report(b'{"a": {"b": null}, "c": [1, null, 1.0]}') == {
        "a": {"b": None},
        "c": [1, None, 1.0],
    }


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"{", "malformed_json"),
        (b"\xff", "malformed_json"),
        (b'{"a":' * 5_000, "malformed_json"),
        (b"[{}]", "not_an_object"),
        (b"null", "not_an_object"),
        (b'{"a": 100000000000000000000}', "wrong_type"),
        (b'{"\\u0000": 1}', "bad_text"),
        (b" " * (MAX_DOCUMENT_BYTES + 1), "too_large"),
    ],
)
def test_what_is_no_report(payload: bytes, code: str) -> None:
    with pytest.raises(Undecodable) as caught:
        decode_report(payload)
    assert caught.value.code == code


@given(st.binary(max_size=60) | st.text('{}[]":,aé\\u0 1e', max_size=30).map(str.encode))
def test_any_bytes_end_well(payload: bytes) -> None:
    with suppress(Undecodable):
        assert isinstance(decode_report(payload), dict)


def test_a_refused_report_says_why() -> None:
    reasons = [unusable(Refusal(c, "why")).code for c in ("not_found", "conflict", "twin_too_large", "new")]
    assert reasons == ["unregistered", "decommissioned", "too_large", "wrong_type"]
