"""A counter in shared memory: how many messages are done, for the generator to follow."""

import mmap
from pathlib import Path


class DoneCount:
    """One process sets it, another looks at it. The file must be there: `create` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    @classmethod
    def create(cls, path: Path) -> "DoneCount":
        """A new counter at 0."""
        path.write_bytes(bytes(8))
        return cls(path)

    def set(self, count: int) -> None:
        """Make the count known."""
        self._map[:] = count.to_bytes(8, "little")

    def get(self) -> int:
        """The count last set."""
        return int.from_bytes(self._map[:], "little")
