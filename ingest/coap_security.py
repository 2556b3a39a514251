"""OSCORE contexts (RFC 8613) of devices, from a directory that holds one directory for each device id."""

from pathlib import Path
from typing import Any

import filelock
from aiocoap import credentials
from aiocoap.oscore import FilesystemSecurityContext

from sensorium.ingest.errors import InvalidContext
from sensorium.ingest.pipeline import is_device_id


class _DeviceContext(FilesystemSecurityContext):  # type: ignore[misc]  # aiocoap ships no types
    """A context that is given up without being written, unless it was closed."""

    def __del__(self) -> None:
        # aiocoap's writes a context down here, also one that it could not load.
        lock: Any = self.lockfile
        self.lockfile: Any = None
        if lock is not None:
            lock.release()


class OscoreContexts:
    """The contexts of a directory. `close` them, so that their sequence numbers go on where they were.

    A directory is named as its device and holds `settings.json` or `secret.json` as aiocoap reads them:
    `sender-id_hex`, `recipient-id_hex`, `secret_hex` and, optionally, `salt_hex`.

    Raises:
        InvalidContext: a context cannot be read, is in use by another process, or two have the same ids.
    """

    def __init__(self, directory: Path) -> None:
        self.credentials: Any = credentials.CredentialsMap()
        ids: dict[tuple[bytes, bytes | None], str] = {}
        try:
            for path in sorted(directory.iterdir()):
                if path.is_dir():
                    context = self._load(path)
                    self.credentials[path.name] = context
                    identity = (context.recipient_id, context.id_context)
                    if identity in ids:
                        raise InvalidContext(f"{path} and {ids[identity]} have the same recipient id")
                    ids[identity] = path.name
        except BaseException:
            self.close()
            raise

    @property
    def device_ids(self) -> frozenset[str]:
        """The devices that have a context."""
        return frozenset(self.credentials)

    def close(self) -> None:
        """Write the sequence numbers down and release the contexts."""
        while self.credentials:
            _, context = self.credentials.popitem()
            context._destroy()

    @staticmethod
    def _load(path: Path) -> Any:
        if not is_device_id(path.name):
            raise InvalidContext(f"{path}: the directory's name is no device id")
        try:
            context = _DeviceContext(str(path))
        except filelock.Timeout:
            raise InvalidContext(f"{path} is in use by another process") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidContext(f"{path}: {error or type(error).__name__}") from None
        context.authenticated_claims = [path.name]
        return context


def check_contexts(directory: Path) -> None:
    """Raise what `OscoreContexts` would, before a service is started on them."""
    OscoreContexts(directory).close()
