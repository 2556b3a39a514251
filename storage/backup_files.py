"""A backup as it lies in its folder: files of rows, and a manifest that says what belongs together."""

import os
import zlib
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Final, Self

import msgspec

from sensorium.actors.errors import SensoriumError

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
NOTES: Final = "finished.jsonl"
"""Of a backup that is under way: the files that are whole, so that it can be gone on with."""
PIECE_BYTES: Final = 1 << 20
_GZIP: Final = 31
_LEVEL: Final = 1


class BadBackup(SensoriumError):
    """The folder holds no backup that can be used; the message says what is wrong with it."""


class TableFile(msgspec.Struct, frozen=True):
    """The rows of a table, or of one partition of it, as PostgreSQL's binary COPY gives them, gzipped.

    Attributes:
        file: its path in the folder.
        table: whose rows they are.
        parent, bound: of a partition: the table that it is part of, and which part, as SQL.
        ends_ms: of a partition: the end of what it can hold.
        retention_class: of a partition that has the rows of one class only.
        rows, size_bytes: how many, and their size before compression.
        sha256: of the file.
    """

    file: str
    table: str
    columns: tuple[str, ...]
    rows: int
    size_bytes: int
    sha256: str
    parent: str | None = None
    bound: str | None = None
    ends_ms: int | None = None
    retention_class: int | None = None


class Sequenced(msgspec.Struct, frozen=True):
    """The last number that a column has given out."""

    table: str
    column: str
    last: int


class DatabaseBackup(msgspec.Struct, frozen=True):
    """One database, as of one moment."""

    schema: int
    taken_ms: int
    tables: tuple[TableFile, ...]
    sequences: tuple[Sequenced, ...]

    @property
    def size_bytes(self) -> int:
        """Of all rows, before compression."""
        return sum(table.size_bytes for table in self.tables)

    def rows(self, table: str) -> int:
        """How many rows a table has, all its partitions together."""
        return sum(t.rows for t in self.tables if table in (t.table, t.parent))


class Manifest(msgspec.Struct, frozen=True):
    """What is in the folder. Written last: a folder without one holds no backup yet."""

    format: int
    version: str
    databases: tuple[DatabaseBackup, ...]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished backup.

    Raises:
        BadBackup: there is none, or it is of a format that this version does not know.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        unfinished = list(folder.glob(f"*/{NOTES}"))
        what = "a backup that was not finished: run it again" if unfinished else "no backup"
        raise BadBackup(f"{folder} holds {what}") from None
    except (OSError, msgspec.MsgspecError) as error:
        raise BadBackup(f"{folder / MANIFEST} cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise BadBackup(f"{folder} has format {manifest.format}; this version of Sensorium reads {FORMAT}")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Make the backup whole, at once. Notes of files that were finished are not needed any more."""
    fresh = folder / f"{MANIFEST}.part"
    with _private(fresh) as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        _to_disk(file)
    fresh.replace(folder / MANIFEST)
    for notes in folder.glob(f"*/{NOTES}"):
        notes.unlink()


def note_finished(directory: Path, done: TableFile) -> None:
    """Remember that a file is whole."""
    with _private(directory / NOTES, "ab") as file:
        file.write(msgspec.json.encode(done) + b"\n")
        _to_disk(file)


def finished(directory: Path) -> list[TableFile]:
    """The files that were noted; a note that was cut off is none."""
    try:
        lines = (directory / NOTES).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=TableFile))
        except msgspec.MsgspecError:
            continue
    return found


class Written:
    """A file of rows while it is written. On disk, and whole, once the context is left without an error."""

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._path = path
        self._fresh = path.with_name(f"{path.name}.part")
        self._pack = zlib.compressobj(_LEVEL, wbits=_GZIP)
        self._hash = sha256()

    def __enter__(self) -> Self:
        self._file = _private(self._fresh)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._write(self._pack.flush())
                _to_disk(self._file)
        finally:
            self._file.close()
        if kind is None:
            self._fresh.replace(self._path)

    def add(self, piece: bytes) -> None:
        """The next bytes of the rows."""
        self.size_bytes += len(piece)
        self._write(self._pack.compress(piece))

    def digest(self) -> str:
        """SHA-256 of the file, once it is left."""
        return self._hash.hexdigest()

    def _write(self, packed: bytes) -> None:
        self._hash.update(packed)
        self._file.write(packed)


async def pieces(folder: Path, table: TableFile) -> AsyncIterator[bytes]:
    """The bytes of the rows. Raises at the end, when all were given, if they are not those that were written.

    Raises:
        BadBackup: the file is missing or damaged.
    """
    path, read, found, unpack = folder / table.file, 0, sha256(), zlib.decompressobj(_GZIP)
    try:
        with path.open("rb") as file:
            while packed := file.read(PIECE_BYTES):
                found.update(packed)
                while packed:
                    # In pieces: a damaged file may unpack to any size.
                    piece = unpack.decompress(packed, PIECE_BYTES)
                    packed = unpack.unconsumed_tail
                    read += len(piece)
                    if read > table.size_bytes:
                        raise BadBackup(f"{path} is damaged: it holds more than was written")
                    if piece:
                        yield piece
    except FileNotFoundError:
        raise BadBackup(f"{path} is missing") from None
    except zlib.error as error:
        raise BadBackup(f"{path} is damaged: {error}") from None
    if found.hexdigest() != table.sha256 or read != table.size_bytes:
        raise BadBackup(f"{path} is damaged: its checksum is not the one that was noted")


async def is_whole(folder: Path, table: TableFile) -> bool:
    """Whether the file is there as it was written."""
    try:
        async for _ in pieces(folder, table):
            pass
    except BadBackup:
        return False
    return True


def remove_others(directory: Path, kept: Sequence[TableFile]) -> None:
    """Delete the files of rows that belong to no backup any more."""
    names = {Path(table.file).name for table in kept}
    for path in directory.glob("*.copy.gz*"):
        if path.name not in names:
            path.unlink()


def _private(path: Path, mode: str = "wb") -> BinaryIO:
    # Readings and metadata are nobody else's business.
    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    return open(path, mode, opener=opener)  # type: ignore[return-value]


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
