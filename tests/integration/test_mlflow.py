"""The registry in a real MLflow server: versions, artefacts and the alias of the one at work.

The server has an environment of its own, `.venv-mlflow` (`make mlflow`), since it needs much that we do not.
"""

import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from platform_process import wait_until

from sensorium.actors.models.info import ModelInfo
from sensorium.ingest.broker import free_port
from sensorium.storage.models.mlflow_registry import ACTIVE, MlflowRegistry
from sensorium.storage.models.registry import ModelNotFound, RegistryUnavailable

SERVER = Path(__file__).resolve().parents[2] / ".venv-mlflow" / "bin" / "mlflow"
INFO = ModelInfo(
    *("pumps", 0, "outliers", "pump", ("a", "b"), ("mean(a)",), 3, 1, 2, 1, 400),
    scores={"recall": 0.5},
    settings={"limit": 5.0, "rule_id": "r"},
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER.exists(), reason="needs an MLflow server: make mlflow"),
    # The client's own dependencies warn, and leave sockets to the collector.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [str(SERVER), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts")]

    def serves() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            wait_until(serves, 90, "MLflow to serve")
            yield address
        finally:
            server.terminate()
            server.wait(30)


@pytest.mark.timeout(300)
def test_versions_in_mlflow(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    registry = MlflowRegistry(url)
    assert registry.all() == []
    with pytest.raises(ModelNotFound, match="no model pumps"):
        registry.get("pumps")
    first = registry.add(INFO, b"one")
    second = registry.add(INFO, b"two")
    assert (first.version, second.version, second.sha256) == (1, 2, sha256(b"two").hexdigest())
    other = registry.add(msgspec.structs.replace(INFO, name="fans"), b"x")
    registry._client.create_registered_model("not-ours")
    assert registry.all() == [other, second, first]
    assert registry.get("pumps", 1) == first
    assert registry.artefact(registry.get("pumps")) == b"two"
    run = registry._client.get_run(registry._client.get_model_version("pumps", "2").run_id)
    assert run.data.metrics == {"recall": 0.5}
    assert run.data.params["rule_id"] == "r"
    registry.mark("pumps", 1)
    assert registry._client.get_model_version_by_alias("pumps", ACTIVE).version == "1"
    registry.mark("pumps", None)
    registry.delete("pumps", 2)
    assert registry.get("pumps") == first
    with pytest.raises(ModelNotFound, match="no version 2 of the model pumps; the newest is 1"):
        registry.delete("pumps", 2)
    # What a command prints is its own.
    assert capsys.readouterr().out == ""


@pytest.mark.timeout(300)
def test_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailable, match="MLflow"):
        MlflowRegistry(f"http://127.0.0.1:{free_port()}").all()
