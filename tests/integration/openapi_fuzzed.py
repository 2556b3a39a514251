"""Schemathesis over the OpenAPI document of a platform: no 5xx, and no answer that is not documented."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx

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
"""The platform's `lorawan.tts_secret`: behind it, bodies of the webhook are read."""
COSTLY = "/api/hosts/scale"
"""Each number that is taken is so many processes."""


def assert_documented(url: str, directory: Path) -> None:
    """Blocks for some `BUDGET_S`. What is made up here, such as rules for all devices, stays."""
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
        cwd=directory,
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
