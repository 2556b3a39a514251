"""The processes of services: none of them takes the time and the memory of what only others need."""

import subprocess
import sys

import pytest

OTHERS = ("aiocoap", "fastapi", "graphql", "pydantic", "sensorium.serve.app", "strawberry")


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "sensorium.cluster.processes, sensorium.ingest.mqtt, sensorium.serve.spreader, sensorium.serve.peers",
        "sensorium.cluster.action_service, sensorium.storage.retention, sensorium.storage.rollup_sink",
        "sensorium.actors.coordinator, sensorium.actors.host",
    ],
)
def test_a_process_imports_neither_the_api_nor_what_other_services_speak(imports: str) -> None:
    code = f"import {imports}; import sys; print(*(name for name in {OTHERS} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == ""
