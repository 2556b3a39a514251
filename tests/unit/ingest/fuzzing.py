"""Bytes for fuzzing: good payloads with damage, and noise; and what must hold of whatever is made of them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensorium.ingest.decode import Bounds, Telemetry

NOW_MS = 1_795_459_094_744
FAST_EXAMPLES = 60
SLOW_EXAMPLES = 3_000

_PIECES = (
    *(b"", b"\0", b"\xff", b"\x80", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", b'"', b"\\", b",", b"{}", b"[]"),
    *(b"null", b"NaN", b"-1", b"1e999", b"9" * 25, b"9" * 350, b'"x":', b"[" * 600, b'{"a":' * 60),
    *(
        b"\x7f\xff\xff\xff",
        b"\xff" * 9 + b"\x01",
        b"\xfb\x7f\xf8\0\0\0\0\0\0",
        b"\x1b" + b"\xff" * 8,
        b"\xc2\x5f",
    ),
)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds with up to four edits: a piece put in, bytes left out, doubled, flipped or cut off."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start, length = draw(st.integers(0, len(data))), draw(st.integers(0, 8))
        end = start + length
        match draw(st.integers(0, 5)):
            case 0:
                data = data[:start] + draw(st.sampled_from(_PIECES)) + data[start:]
            case 1:
                data = data[:start] + draw(st.sampled_from(_PIECES)) + data[end:]
            case 2:
                data = data[:start] + data[end:]
            case 3:
                data = data[:end] + data[start:]
            case 4:
                data = data[:start] + bytes([draw(st.integers(0, 255))]) + data[start + 1 :]
            case _:
                data = data[:start]
    return data


def payloads(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """Mostly damaged seeds, some noise."""
    return st.one_of(damaged(seeds), damaged(seeds), damaged(seeds), st.binary(max_size=80))


def fuzz(check: Callable[[Any], None], drawn: st.SearchStrategy[Any], examples: int) -> None:
    """Call `check` with so many examples; the smallest one it fails for is printed."""

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn)
    def run(example: Any) -> None:
        check(example)

    run()


def are_readings(found: list[Telemetry], bounds: Bounds) -> None:
    """Readings that every part behind the decoder can take."""
    assert found
    for time_ms, names, values, own_time in found:
        assert type(time_ms) is int
        assert type(own_time) is bool
        assert NOW_MS - bounds.max_past_s * 1000 <= time_ms <= NOW_MS + bounds.max_future_s * 1000
        assert 1 <= len(names) == len(set(names)) == len(values) <= bounds.max_metrics
        for name, value in zip(names, values, strict=True):
            assert 1 <= len(name) <= bounds.max_name_chars
            assert name.isprintable()
            if type(value) is float:
                assert math.isfinite(value)
            elif type(value) is str:
                assert len(value) <= bounds.max_text_chars
                is_storable(value)
            else:
                assert type(value) is bool


def is_storable(value: Any) -> None:
    """JSON that a database takes and that travels between hosts: whole numbers of 64 bits, no NUL."""
    packed = msgspec.msgpack.encode(value)
    assert b"\\u0000" not in msgspec.json.encode(value), value
    assert packed is not None
