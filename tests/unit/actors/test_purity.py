"""The pure core starts nowhere near a runtime: no Ray, no event loop, no client."""

import subprocess
import sys

import pytest

CORE = [
    "conditions",
    "detectors",
    "device",
    "messages",
    "metrics",
    "placement",
    "recovery",
    "rules",
    "seen",
    "windows",
]
KEPT_OUT = ["ray", "asyncio", "asyncpg", "pydantic", "fastapi", "gmqtt", "random", "socket", "threading"]


def test_importing_the_core_pulls_in_no_runtime():
    script = "import sys\n" + "".join(f"import sensorium.actors.{name}\n" for name in CORE)
    script += f"print(*(set({KEPT_OUT}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize("name", CORE)
def test_the_core_reads_no_clock(name):
    module = __import__(f"sensorium.actors.{name}", fromlist=[name])
    assert not {"time", "datetime", "random", "uuid"} & set(vars(module))
