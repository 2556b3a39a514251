"""Pre-shared keys of devices from a file like Mosquitto's `psk_file`: `id:key in hex`, a line each."""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from sensorium.ingest.errors import InvalidContext
from sensorium.ingest.pipeline import is_device_id

MIN_KEY_BYTES: Final = 16
MAX_KEY_BYTES: Final = 32
"""More than that mbed TLS takes only where it was built for it."""
MAX_FILE_BYTES: Final = 64 << 20


class DeviceKeys(Mapping[str, bytes]):
    """Keys by device id, read again when the file has changed.

    Attributes:
        asked: the last device id whose key was looked up, whether there is one or not.

    Raises:
        InvalidContext: the file cannot be read, or a line of it is no key; its message names the line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.asked: str | None = None
        self._seen = self._stamp()
        self._keys = self._read()

    def __getitem__(self, device_id: str) -> bytes:
        self.asked = device_id
        return self._keys[device_id]

    def __contains__(self, device_id: object) -> bool:
        return device_id in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def refresh(self) -> set[str]:
        """Device ids whose key was changed or taken away since, once the file says so.

        Raises:
            InvalidContext: the file has become unusable; the keys stay as they were.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return set()
        self._seen = stamp
        before, self._keys = self._keys, self._read()
        return {device_id for device_id, key in before.items() if self._keys.get(device_id) != key}

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path)  # noqa: PTH116 -- once a second
        except OSError as error:
            raise InvalidContext(f"{self._path}: {error.strerror}") from None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> dict[str, bytes]:
        try:
            with self._path.open(encoding="utf-8") as file:
                text = file.read(MAX_FILE_BYTES)
        except OSError as error:
            raise InvalidContext(f"{self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InvalidContext(f"{self._path} is not UTF-8") from None
        keys: dict[str, bytes] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            # A device id may have colons, a key has none.
            device_id, _, digits = line.strip().rpartition(":")
            where = f"{self._path}, line {number}"
            if not is_device_id(device_id):
                raise InvalidContext(f"{where}: write a device id, a colon and its key in hex")
            try:
                key = bytes.fromhex(digits)
            except ValueError:
                raise InvalidContext(f"{where}: the key of {device_id} is not in hex") from None
            if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
                raise InvalidContext(
                    f"{where}: the key of {device_id} has {len(key)} bytes,"
                    f" not {MIN_KEY_BYTES} to {MAX_KEY_BYTES}"
                )
            if device_id in keys:
                raise InvalidContext(f"{where}: {device_id} has a key already")
            keys[device_id] = key
        return keys


def check_dtls(path: Path) -> None:
    """Raise `InvalidContext` where DTLS cannot be served with that file, before a service starts on it."""
    if importlib.util.find_spec("mbedtls") is None:
        raise InvalidContext("coap.dtls_keys needs python-mbedtls: pip install 'sensorium[dtls]'")
    DeviceKeys(path)
