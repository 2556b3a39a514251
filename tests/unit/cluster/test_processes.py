"""The processes of services: none of them takes the time and the memory of what only others need."""

import subprocess
import sys

import pytest

OTHERS = ("aiocoap", "fastapi", "graphql", "pydantic", "sensorium.serve.app", "strawberry")


UNASKED = {
    "sensorium.cluster.cli": ("fastapi", "ray", "starlette"),
    "sensorium.cluster.platform": ("fastapi", "graphql", "ray.serve", "sensorium.serve.app", "strawberry"),
}
"""Of the commands, and of the process that starts a platform: what they would wait for and not use."""


def imported(imports: str, names: tuple[str, ...]) -> str:
    code = f"import {imports}; import sys; print(*(name for name in {names} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("module", UNASKED)
def test_a_command_imports_what_it_uses(module: str) -> None:
    assert imported(module, UNASKED[module]) == ""


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
    assert imported(imports, OTHERS) == ""
