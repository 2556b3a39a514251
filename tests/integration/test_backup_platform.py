"""`sensorium backup` of a platform at work, and `restore` into an empty one that then goes on from there."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from platform_process import PlatformProcess, run_sensorium

from sensorium.ingest.broker import free_port

pytestmark = pytest.mark.timeout(240)

HOT = {
    "name": "hot",
    "condition": {"type": "threshold", "metric": "temperature", "operator": ">", "value": 80},
    "severity": "major",
}
DEVICES = [f"pump-{n}" for n in range(3)]
READINGS = [f"devices/{device}/data?limit=1000" for device in DEVICES]
PAGES = ["devices?status=any", "analytics/rules", "alarms", *READINGS]


@pytest.fixture
def platforms(short_dir: Path) -> Iterator[list[PlatformProcess]]:
    """One that is backed up, and the one that takes its place."""
    two = [PlatformProcess(short_dir / f"backup-{n}", free_port(), free_port()) for n in range(2)]
    yield two
    for each in two:
        each.close()


def api(platform: PlatformProcess) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{platform.http_port}/api/", timeout=30)


def answers(client: httpx.Client) -> dict[str, Any]:
    return {page: client.get(page).raise_for_status().json() for page in PAGES}


def send(client: httpx.Client, device: str, value: float) -> None:
    client.post(f"devices/{device}/data", json={"temperature": value}).raise_for_status()


@pytest.mark.ray
def test_a_platform_comes_back_elsewhere(platforms: list[PlatformProcess], tmp_path: Path) -> None:
    old, new = platforms
    old.start()
    folder = tmp_path / "backup"
    with api(old) as client:
        client.post("analytics/rules", json=HOT).raise_for_status()
        for device in DEVICES:
            client.post("devices", json={"device_id": device, "device_type": "pump"}).raise_for_status()
            for value in (20.0, 50.0, 90.0):
                send(client, device, value)
        expected = answers(client)
        assert len(expected["alarms"]["items"]) == len(DEVICES)
        made = run_sensorium("backup", folder, "--data-dir", old.data_dir)
        assert (made.returncode, made.stderr) == (0, "")
        assert made.stdout.startswith(f"{folder}: 3 devices, 9 readings, ")
        # What comes after belongs to the next backup.
        send(client, DEVICES[0], 91.0)
    taken = run_sensorium("restore", folder, "--data-dir", old.data_dir)
    assert taken.returncode == 1
    assert "runs on" in taken.stderr
    assert old.stop(signal.SIGTERM) == 0
    checked = run_sensorium("restore", "--check", folder)
    assert checked.stdout.endswith("MB before compression, whole\n"), checked.stderr
    restored = run_sensorium("restore", folder, "--data-dir", new.data_dir)
    assert restored.returncode == 0, restored.stderr
    assert restored.stdout.endswith(", restored\n")
    new.start()
    with api(new) as client:
        assert answers(client) == expected
        # It goes on: the rule still sees the alarm that is active, which ends now.
        send(client, DEVICES[1], 10.0)
        states = {alarm["device_id"]: alarm["state"] for alarm in client.get("alarms").json()["items"]}
        assert states[DEVICES[1]] == "CLEARED"
    # With the platform ended, the same folder takes what is new.
    assert new.stop(signal.SIGTERM) == 0
    again = run_sensorium("backup", folder, "--data-dir", new.data_dir)
    assert again.stdout.startswith(f"{folder}: 3 devices, 10 readings, "), again.stderr


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    nothing = run_sensorium("backup", tmp_path / "b", "--data-dir", tmp_path / "none")
    assert (nothing.returncode, nothing.stdout) == (2, "")
    assert nothing.stderr == (
        f"sensorium: no platform has kept anything in {tmp_path / 'none'}: name its --data-dir\n"
    )
    empty = run_sensorium("restore", tmp_path, "--data-dir", tmp_path / "none")
    assert (empty.returncode, empty.stderr) == (1, f"sensorium: {tmp_path} holds no backup\n")
    assert not (tmp_path / "b").exists()
