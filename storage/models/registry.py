"""A registry of models: numbered versions of artefacts with their metadata, never changed once there."""

from typing import Protocol

from sensorium.actors.errors import Refused, Unavailable
from sensorium.actors.models.info import ModelInfo


class ModelNotFound(Refused, LookupError):
    """There is no model of this name, or none of this version."""

    code = "not_found"


class RegistryUnavailable(Unavailable):
    """The registry cannot be reached, or not be read or written; the message says why."""


class ModelRegistry(Protocol):
    """Blocking calls. All raise `RegistryUnavailable` when it cannot be reached."""

    def all(self) -> list[ModelInfo]:
        """All versions of all models, by name, the newest version of each first."""
        ...

    def get(self, name: str, version: int | None = None) -> ModelInfo:
        """A version, or the newest one. Raises `ModelNotFound`."""
        ...

    def artefact(self, info: ModelInfo) -> bytes:
        """Its artefact, unchecked. Raises `ModelNotFound`."""
        ...

    def add(self, info: ModelInfo, artefact: bytes) -> ModelInfo:
        """Store it as the next version of its name; the metadata with version, checksum and size."""
        ...

    def delete(self, name: str, version: int) -> None:
        """Forget a version; its number is not given again. Raises `ModelNotFound`."""
        ...

    def mark(self, name: str, version: int | None) -> None:
        """Note which version is at work, for who looks at the registry; None: none is."""
        ...
