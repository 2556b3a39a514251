"""Block-wise transfers (RFC 7959), bounded: uploads put together, downloads cut. No input or output."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, NamedTuple

MAX_UPLOADS: Final = 1_000
"""Unfinished uploads at once; the one that rested for longest makes room for another."""
MAX_UPLOADED_BYTES: Final = 64 * 1024 * 1024
"""Of all unfinished uploads together."""
UPLOAD_LIFETIME_S: Final = 93.0
"""An upload without a new block for so long is dropped (MAX_TRANSMIT_WAIT of RFC 7252)."""
MAX_DOWNLOADS: Final = 256
"""Answers kept, so that all blocks of one come from the same state."""
MAX_SIZE_EXPONENT: Final = 6
"""1,024 bytes; 7 is for reliable transports."""


class BlockError(Exception):
    """A block that cannot be used."""


class Incomplete(BlockError):
    """Blocks before this one are missing: begin anew (4.08)."""


class TooLarge(BlockError):
    """The blocks together are more than is taken (4.13)."""


class Block(NamedTuple):
    """A Block option: number, whether more follow, and the size as exponent (`16 << size_exponent` bytes)."""

    number: int
    more: bool
    size_exponent: int

    @property
    def start(self) -> int:
        """Where the block begins."""
        return self.number << (self.size_exponent + 4)


class _Upload:
    __slots__ = ("data", "touched_s")

    def __init__(self, now_s: float) -> None:
        self.data = bytearray()
        self.touched_s = now_s


class Uploads:
    """Puts uploads together, each of `max_bytes` at most."""

    def __init__(self, max_bytes: int, clock_s: Callable[[], float]) -> None:
        self._max_bytes = max_bytes
        self._clock_s = clock_s
        self._open: OrderedDict[Hashable, _Upload] = OrderedDict()
        self._bytes = 0

    def add(self, key: Hashable, block: Block, payload: bytes) -> bytes | None:
        """The whole upload with its last block, before that None. Raises `BlockError`."""
        now_s = self._clock_s()
        while self._open and now_s - next(iter(self._open.values())).touched_s >= UPLOAD_LIFETIME_S:
            self._drop(next(iter(self._open)))
        if block.number == 0:
            self._drop(key)
            upload = _Upload(now_s)
        elif key in self._open:
            upload = self._open[key]
        else:
            raise Incomplete("the blocks before this one are not known")
        if len(upload.data) != block.start:
            self._drop(key)
            raise Incomplete(f"this block begins at {block.start}, and {len(upload.data)} bytes are here")
        if block.more and len(payload) != 16 << block.size_exponent:
            self._drop(key)
            raise Incomplete("only the last block may be shorter than its size")
        if len(upload.data) + len(payload) > self._max_bytes:
            self._drop(key)
            raise TooLarge(f"at most {self._max_bytes} bytes are taken")
        if not block.more:
            whole = bytes(upload.data) + payload
            self._drop(key)
            return whole
        upload.data += payload
        upload.touched_s = now_s
        self._bytes += len(payload)
        self._open[key] = upload
        self._open.move_to_end(key)
        while len(self._open) > MAX_UPLOADS or self._bytes > MAX_UPLOADED_BYTES:
            self._drop(next(iter(self._open)))
        return None

    def _drop(self, key: Hashable) -> None:
        upload = self._open.pop(key, None)
        if upload is not None:
            self._bytes -= len(upload.data)

    def __len__(self) -> int:
        return len(self._open)


class Downloads:
    """Keeps what is longer than a block until it has been fetched, the latest `MAX_DOWNLOADS`."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()

    def keep(self, key: Hashable, content: bytes) -> None:
        """Remember what further blocks are cut from."""
        self._kept[key] = content
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_DOWNLOADS:
            self._kept.popitem(last=False)

    def kept(self, key: Hashable) -> bytes | None:
        """What the first block was cut from, if it is still known."""
        return self._kept.get(key)


def cut(content: bytes, asked: Block | None) -> tuple[bytes, Block | None]:
    """The block that is asked for, and its option; without an option when all fits and none was asked for.

    Raises `Incomplete` for a block behind the end.
    """
    exponent = min(asked.size_exponent if asked else MAX_SIZE_EXPONENT, MAX_SIZE_EXPONENT)
    if asked is None and len(content) <= 16 << exponent:
        return content, None
    # A client that asked in larger blocks than there are gets the part that begins where it asked.
    start = asked.start if asked else 0
    size = 16 << exponent
    if start and start >= len(content):
        raise Incomplete(f"the content ends at {len(content)} bytes")
    part = content[start : start + size]
    return part, Block(start // size, start + size < len(content), exponent)
