"""How much room is left on the disk that a folder is on, and whether that is little."""

from pathlib import Path
from shutil import disk_usage
from typing import Final, NamedTuple

LOW_SHARE: Final = 0.1
LOW_BYTES: Final = 10 << 30
"""Room is little below this share of the disk and below so much: a tenth of a large disk is plenty."""


class DiskSpace(NamedTuple):
    """Bytes that we may still write, and those of the whole disk."""

    free_bytes: int
    total_bytes: int

    @property
    def low(self) -> bool:
        """Whether room should be made, or a larger disk be had."""
        return self.free_bytes < min(self.total_bytes * LOW_SHARE, LOW_BYTES)


def disk_space(folder: Path) -> DiskSpace:
    """Of the disk that the folder is on.

    Raises:
        OSError: there is no such folder.
    """
    found = disk_usage(folder)
    return DiskSpace(found.free, found.total)
