"""Schemathesis over the OpenAPI document of a platform: no 5xx, and no answer that is not documented."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from platform_process import PlatformProcess

from sensorium.ingest.broker import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BUDGET_S = 60
"""Of the whole run, which repeats with other values until it is spent."""
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance"),
    *("response_headers_conformance", "response_schema_conformance"),
    *("unsupported_method", "allow_header_conformance"),
)
UNENDING = "/api/live"
"""A stream, whose end nobody can wait for."""
SECRET = "at least 16 characters"
"""Of the webhook: behind it, its bodies are read."""
COSTLY = "/api/hosts/scale"
"""Each number that is taken is so many processes."""


@pytest.fixture(scope="module")
def fuzzed(short_dir: Path) -> Iterator[PlatformProcess]:
    """A platform of its own: what is made up here, such as rules for all devices, would be in others' way."""
    config = short_dir / "fuzzed.yaml"
    config.write_text(f"lorawan: {{tts_secret: {SECRET}}}\n")
    running = PlatformProcess(short_dir / "fuzzed", free_port(), free_port(), "--config", str(config))
    try:
        running.start()
        yield running
        assert running.stop() == 0, running.errors
    finally:
        running.close()


@pytest.mark.timeout(240)
def test_no_server_error_and_no_undocumented_answer(fuzzed: PlatformProcess, tmp_path: Path) -> None:
    url = fuzzed.state.http_url
    schemathesis = shutil.which("schemathesis", path=Path(sys.executable).parent)
    assert schemathesis is not None
    excluded = [word for path in (UNENDING, COSTLY) for word in ("--exclude-path", path)]
    done = subprocess.run(
        [
            *(schemathesis, "run", f"{url}/openapi.json", "--max-time", str(BUDGET_S), "--no-color"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing,stateful"),
            *("--continue-on-failure", "--request-timeout", "20", "--warnings", "off", "-n", "10"),
            *("--generation-database", "none", "--header", f"X-Webhook-Secret: {SECRET}", *excluded),
        ],
        cwd=tmp_path,
        env={
            **os.environ,
            "SCHEMATHESIS_HOOKS": "openapi_hooks",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
        timeout=BUDGET_S + 120,
        check=False,
    )
    told = "\n".join(line[:500] for line in done.stdout.splitlines())
    assert done.returncode == 0, f"{told}\n{done.stderr[-2000:]}"
    tested = re.search(r"Tested: +(\d+)", done.stdout)
    assert tested is not None, told
    paths = httpx.get(f"{url}/openapi.json", timeout=15).json()["paths"]
    assert int(tested[1]) == sum(len(path) for path in paths.values()) - 2, "all but what is excluded"
