"""The registry in a folder: `NAME/VERSION/model.skops` and `model.json`. Several processes may use one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.info import ModelInfo, check_name
from sensorium.storage.models.registry import ModelNotFound, RegistryUnavailable

ARTEFACT: Final = "model.skops"
METADATA: Final = "model.json"
LAST: Final = ".last"
"""The highest version that was ever given, so that a deleted one's number does not come back."""
_TRIES: Final = 100


class FolderRegistry:
    """Implements `ModelRegistry`. The folder is made with the first model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[ModelInfo]:
        """As the port says. A folder that is no model is passed over."""
        found = []
        with _translated():
            if not self._folder.is_dir():
                return []
            for entry in self._folder.iterdir():
                if entry.is_dir() and not entry.name.startswith("."):
                    found += [self._read(entry.name, number) for number in self._versions(entry.name)]
        return sorted(found, key=lambda info: (info.name, -info.version))

    def get(self, name: str, version: int | None = None) -> ModelInfo:
        """As the port says."""
        check_name(name)
        with _translated():
            versions = self._versions(name)
            if not versions:
                raise ModelNotFound(f"no model {name}")
            if version is not None and version not in versions:
                raise ModelNotFound(
                    f"no version {version} of the model {name}; the newest is {max(versions)}"
                )
            return self._read(name, version or max(versions))

    def artefact(self, info: ModelInfo) -> bytes:
        """As the port says."""
        with _translated():
            return self._place(info.name, info.version, ARTEFACT).read_bytes()

    def add(self, info: ModelInfo, artefact: bytes) -> ModelInfo:
        """As the port says: it appears whole or not at all."""
        own = self._folder / check_name(info.name)
        with _translated():
            own.mkdir(parents=True, exist_ok=True)
            fresh = Path(mkdtemp(prefix=".new-", dir=own))
            try:
                _write(fresh / ARTEFACT, artefact)
                checksum = sha256(artefact).hexdigest()
                for _ in range(_TRIES):
                    number = max([self._last(own), *self._versions(info.name)]) + 1
                    stored = msgspec.structs.replace(
                        info, version=number, sha256=checksum, size_bytes=len(artefact)
                    )
                    _write(fresh / METADATA, msgspec.json.format(msgspec.json.encode(stored), indent=2))
                    try:
                        fresh.rename(own / str(number))
                    except OSError:
                        if (own / str(number)).exists():
                            continue  # somebody else was quicker
                        raise
                    return stored
                raise RegistryUnavailable(f"{own}: others add versions faster than we can")
            finally:
                shutil.rmtree(fresh, ignore_errors=True)

    def delete(self, name: str, version: int) -> None:
        """As the port says."""
        self.get(name, version)
        own = self._folder / name
        with _translated():
            _write(own / LAST, str(max(self._last(own), *self._versions(name))).encode())
            shutil.rmtree(own / str(version))

    def mark(self, name: str, version: int | None) -> None:
        """Nothing: what is at work stands in the database."""

    def _versions(self, name: str) -> list[int]:
        own = self._folder / name
        if not own.is_dir():
            return []
        numbers = (entry.name for entry in own.iterdir() if (entry / METADATA).is_file())
        return [int(number) for number in numbers if number.isascii() and number.isdigit()]

    def _read(self, name: str, version: int) -> ModelInfo:
        path = self._place(name, version, METADATA)
        try:
            info = msgspec.json.decode(path.read_bytes(), type=ModelInfo)
        except msgspec.MsgspecError as error:
            raise InvalidMessage(f"{path}: {error}") from error
        if (info.name, info.version) != (name, version):
            raise InvalidMessage(f"{path} is of {info.label}")
        return info

    def _place(self, name: str, version: int, file: str) -> Path:
        return self._folder / check_name(name) / str(version) / file

    def _last(self, own: Path) -> int:
        file = own / LAST
        text = file.read_text().strip() if file.is_file() else ""
        return int(text) if text.isdigit() else 0


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ModelNotFound(f"{error.filename}: no such file") from error
    except OSError as error:
        raise RegistryUnavailable(f"{error.filename}: {error.strerror}") from error
