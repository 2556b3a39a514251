"""The registry in MLflow: a model version a version, its artefact and metadata in the artefacts of its run.

Needs the extra `mlflow`. The artefact is checked and loaded as from a folder; MLflow's flavours, which
unpickle, are not used.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import msgspec

from sensorium.actors.errors import InvalidMessage
from sensorium.actors.models.info import ModelInfo, check_name
from sensorium.storage.models.registry import ModelNotFound, RegistryUnavailable

ARTEFACT: Final = "model.skops"
METADATA: Final = "model.json"
EXPERIMENT: Final = "sensorium"
ACTIVE: Final = "active"
"""The alias of the version that is at work."""
OURS: Final = "sensorium.model"
"""The tag of versions that are ours, with the metadata; a registry may have others' models."""
_PAGE: Final = 500


class MlflowRegistry:
    """Implements `ModelRegistry`. Raises `InvalidMessage` without the extra."""

    def __init__(self, url: str) -> None:
        try:
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise InvalidMessage(
                "ML_MODEL_REGISTRY_URL needs the extra `mlflow`: pip install 'sensorium[mlflow]'"
            ) from error
        self._client: Any = MlflowClient(tracking_uri=url, registry_uri=url)

    def all(self) -> list[ModelInfo]:
        """As the port says; models of others are passed over."""
        found, token = [], None
        with _translated():
            while True:
                page = self._client.search_model_versions(max_results=_PAGE, page_token=token)
                found += [info for info in map(_info, page) if info is not None]
                token = page.token
                if not token:
                    break
        return sorted(found, key=lambda info: (info.name, -info.version))

    def get(self, name: str, version: int | None = None) -> ModelInfo:
        """As the port says."""
        check_name(name)
        with _translated():
            found = self._client.search_model_versions(f"name='{name}'", max_results=_PAGE)
        own = {info.version: info for info in map(_info, found) if info is not None}
        if not own:
            raise ModelNotFound(f"no model {name}")
        if version is not None and version not in own:
            raise ModelNotFound(f"no version {version} of the model {name}; the newest is {max(own)}")
        return own[version or max(own)]

    def artefact(self, info: ModelInfo) -> bytes:
        """As the port says."""
        with TemporaryDirectory() as folder, _translated():
            stored = self._client.get_model_version(info.name, str(info.version))
            file = self._client.download_artifacts(stored.run_id, ARTEFACT, folder)
            return Path(file).read_bytes()

    def add(self, info: ModelInfo, artefact: bytes) -> ModelInfo:
        """As the port says: a run with parameters, scores and artefacts, then a version of it."""
        from mlflow.exceptions import MlflowException

        check_name(info.name)
        stored = msgspec.structs.replace(info, sha256=sha256(artefact).hexdigest(), size_bytes=len(artefact))
        with _translated():
            experiment = self._client.get_experiment_by_name(EXPERIMENT)
            number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
            run = self._client.create_run(number, run_name=info.name)
            run_id = run.info.run_id
            for key, value in {"kind": info.kind, "device_type": info.device_type, **info.settings}.items():
                self._client.log_param(run_id, key, value)
            for key, score in info.scores.items():
                self._client.log_metric(run_id, key, score)
            with TemporaryDirectory() as folder:
                for name, data in ((ARTEFACT, artefact), (METADATA, msgspec.json.encode(stored))):
                    file = Path(folder) / name
                    file.write_bytes(data)
                    self._client.log_artifact(run_id, str(file))
            with redirect_stdout(io.StringIO()):  # it prints addresses
                self._client.set_terminated(run_id)
            try:
                self._client.create_registered_model(info.name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{run.info.artifact_uri}/{ARTEFACT}"
            made = self._client.create_model_version(
                info.name, source, run_id, tags={OURS: msgspec.json.encode(stored).decode()}
            )
        return msgspec.structs.replace(stored, version=int(made.version))

    def delete(self, name: str, version: int) -> None:
        """As the port says. The run with the artefact stays in MLflow."""
        self.get(name, version)
        with _translated():
            self._client.delete_model_version(name, str(version))

    def mark(self, name: str, version: int | None) -> None:
        """As the port says: MLflow's alias `active`."""
        with _translated():
            if version is None:
                self._client.delete_registered_model_alias(name, ACTIVE)
            else:
                self._client.set_registered_model_alias(name, ACTIVE, str(version))


def _info(stored: Any) -> ModelInfo | None:
    text = stored.tags.get(OURS)
    if text is None:
        return None
    try:
        info = msgspec.json.decode(text, type=ModelInfo)
    except msgspec.MsgspecError:
        return None
    return msgspec.structs.replace(info, name=stored.name, version=int(stored.version))


@contextmanager
def _translated() -> Iterator[None]:
    """MLflow's errors in our words; its client tries again by itself before it gives up."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise ModelNotFound(str(error)) from error
        raise RegistryUnavailable(f"MLflow: {str(error).splitlines()[0][:200]}") from error
    except OSError as error:
        raise RegistryUnavailable(f"MLflow: {error}") from error
