"""Where a follower of the log stands, and how that is written down for people to hand back. Reads nothing.

All rows of a commit bear one time. So a place in the log is a commit time below which everything has been
given, and the commits above it that have been given already: exact for all shards, and short.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple
from zlib import crc32

from sensorium.actors.errors import InvalidMessage

MAX_COMMITS: Final = 1_500
"""Commits that a cursor names, so that it fits into a header; what is left out is given again."""
MAX_CURSOR_CHARS: Final = 8_192

_VERSION: Final = 1
_CHECK_BYTES: Final = 4
_MALFORMED: Final = "not a cursor of the live feed: hand back one as it came, or begin without"


class Position(NamedTuple):
    """Behind every row committed before `floor_ms` (1970 UTC), and those of `commits_us` at or after it."""

    floor_ms: int
    commits_us: frozenset[int] = frozenset()


def write_cursor(positions: Sequence[Position]) -> str:
    """The positions in each database of the log as one opaque text of letters, digits, `-` and `_`."""
    numbers = [_VERSION, len(positions)]
    for floor_ms, commits_us in positions:
        newest = sorted(commits_us)[-MAX_COMMITS:]
        numbers += (floor_ms, len(newest))
        before_us = floor_ms * 1000
        for commit_us in newest:
            numbers.append(commit_us - before_us)
            before_us = commit_us
    data = bytes(_varints(numbers))
    return base64.urlsafe_b64encode(data + _check(data)).decode().rstrip("=")


def read_cursor(text: str, databases: int) -> list[Position]:
    """What `write_cursor` was given.

    Raises:
        InvalidMessage: it is no such text, or of a log over another number of databases.
    """
    if len(text) > MAX_CURSOR_CHARS:
        raise InvalidMessage(_MALFORMED)
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidMessage(_MALFORMED) from None
    data, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    if not data or check != _check(data):
        raise InvalidMessage(_MALFORMED)
    numbers = _numbers(data)
    try:
        if next(numbers) != _VERSION:
            raise InvalidMessage(_MALFORMED)
        if (count := next(numbers)) != databases:
            raise InvalidMessage(f"a cursor of a log over {count} databases, not {databases}: begin without")
        positions = [_position(numbers) for _ in range(databases)]
        left = next(numbers, None)
    except StopIteration:
        raise InvalidMessage(_MALFORMED) from None
    if left is not None:
        raise InvalidMessage(_MALFORMED)
    return positions


def _position(numbers: Iterator[int]) -> Position:
    floor_ms, count = next(numbers), next(numbers)
    if count > MAX_COMMITS:
        raise InvalidMessage(_MALFORMED)
    commits, at_us = [], floor_ms * 1000
    for _ in range(count):
        at_us += next(numbers)
        commits.append(at_us)
    return Position(floor_ms, frozenset(commits))


def _check(data: bytes) -> bytes:
    return crc32(data).to_bytes(_CHECK_BYTES, "big")


def _varints(numbers: Sequence[int]) -> Iterator[int]:
    """Seven bits a byte, lowest first; the highest bit says that more follow."""
    for number in numbers:
        while number > 0x7F:
            yield number & 0x7F | 0x80
            number >>= 7
        yield number


def _numbers(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        if byte & 0x80:
            shift += 7
            if shift > 56:
                raise InvalidMessage(_MALFORMED)
        else:
            yield number
            number = shift = 0
