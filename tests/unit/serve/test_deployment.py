"""What can be said of the deployment without Ray: settings travel, and readiness reads what the hosts say."""

import asyncio
import pickle
import subprocess
import sys
from typing import Any

import pytest

from sensorium.actors.errors import Unavailable
from sensorium.serve.deployment import ApiSettings
from sensorium.serve.overview import Overview


class Coordinator:
    """A handle whose only method answers with these statistics."""

    def __init__(self, statistics: dict[str, Any]) -> None:
        self.statistics = statistics
        self.calls = 0
        self.call = self

    def remote(self, method: str) -> "asyncio.Future[dict[str, Any]]":
        assert method == "statistics"
        self.calls += 1
        answered: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        answered.set_result(self.statistics)
        return answered


def test_settings_pickle() -> None:
    settings = ApiSettings("postgresql://localhost/x", max_requests=5)
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.slow
def test_ray_serve_is_not_imported_before_its_environment_is_set() -> None:
    code = "import sensorium.serve.deployment, sys; sys.exit('ray.serve' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


async def test_many_probes_ask_the_coordinator_once() -> None:
    coordinator = Coordinator({"hosts": [{"name": "host-0", "log_down_s": 0.0}], "down": []})
    overview = Overview(coordinator)
    await asyncio.gather(*(overview.check_hosts() for _ in range(20)))
    assert coordinator.calls == 1


@pytest.mark.parametrize(
    ("statistics", "said"),
    [
        ({"hosts": [], "down": ["host-1"]}, "host-1 is down"),
        (
            {"hosts": [{"name": "host-0", "log_down_s": 7.2}], "down": []},
            "host-0 has not been able to commit for 7 s",
        ),
    ],
)
async def test_a_host_that_is_down_or_cannot_commit_is_named(statistics: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        await Overview(Coordinator(statistics)).check_hosts()


async def test_a_host_that_cannot_commit_to_a_further_database_is_ready_for_the_others() -> None:
    host = {"name": "host-0", "log_down_s": 7.2}
    await Overview(Coordinator({"hosts": [host | {"databases_down": [2]}], "down": []})).check_hosts()
    with pytest.raises(Unavailable, match="host-0 has not been able to commit"):
        await Overview(Coordinator({"hosts": [host | {"databases_down": [1, 2]}], "down": []})).check_hosts()
