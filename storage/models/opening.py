"""Which registry there is: MLflow where its address is given, else a folder."""

from dataclasses import dataclass
from pathlib import Path

from sensorium.storage.models.folder import FolderRegistry
from sensorium.storage.models.registry import ModelRegistry


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """Where models are registered. Must pickle."""

    folder: str
    mlflow_url: str | None = None

    def open(self) -> ModelRegistry:
        """Raises `InvalidMessage` where MLflow is named and its client is not installed."""
        if self.mlflow_url is not None:
            from sensorium.storage.models.mlflow_registry import MlflowRegistry

            return MlflowRegistry(self.mlflow_url)
        return FolderRegistry(Path(self.folder))
