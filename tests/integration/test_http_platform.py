"""The HTTP examples of docs/protocols.md, with curl, against a platform."""

import re
import subprocess
from pathlib import Path

import httpx
import pytest
from platform_process import PlatformProcess

pytestmark = pytest.mark.ray

PAGE = Path(__file__).parents[2] / "docs" / "protocols.md"


def http_examples() -> list[str]:
    """The shell blocks of the section HTTP."""
    section = PAGE.read_text().split("\n## HTTP\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


async def test_they_do_what_the_page_says(
    platform: PlatformProcess, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    for device_id in ("http-001", "http-002"):
        await api.post("/api/devices", json={"device_id": device_id, "device_type": "http"})
    examples = http_examples()
    assert len(examples) == 3
    for example in examples:
        script = example.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{platform.http_port}")
        script = script.replace("sensor-00", "http-00")
        bash = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(bash, cwd=tmp_path, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert '"accepted"' in done.stdout, done.stdout
        assert '"refused":0' in done.stdout, done.stdout
    latest = (await api.get("/api/devices/http-002/data/latest")).json()
    assert latest["metrics"]["humidity"]["value"] == 45.3
