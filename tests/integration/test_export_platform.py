"""Readings exported from a platform: streamed through its proxy, more than fits into one page."""

import csv
import json
from pathlib import Path

import httpx
import pyarrow.parquet
import pytest
from platform_process import PlatformProcess, run_sensorium

pytestmark = pytest.mark.ray

READINGS = 12_000
NOON_MS = 1_704_110_400_000


async def test_a_device_in_each_format(
    platform: PlatformProcess, api: httpx.AsyncClient, tmp_path: Path
) -> None:
    created = await api.post("/api/devices", json={"device_id": "exported", "device_type": "exporting"})
    assert created.status_code == 201
    for first in range(0, READINGS, 1000):
        batch = [{"n": n, "timestamp": NOON_MS + n} for n in range(first, first + 1000)]
        sent = await api.post("/api/devices/exported/data", json=batch)
        assert sent.status_code < 300, sent.text
    files = {suffix: tmp_path / f"out.{suffix}" for suffix in ("ndjson", "csv", "parquet")}
    url = f"http://127.0.0.1:{platform.http_port}"
    for file in files.values():
        done = run_sensorium("export", file, "--type", "exporting", "--url", url)
        assert (done.returncode, done.stdout) == (0, f"{file}: {file.stat().st_size:,} bytes\n"), done.stderr
    expected = [float(n) for n in range(READINGS)]
    lines = map(json.loads, files["ndjson"].read_text().splitlines())
    assert [line["values"]["n"] for line in lines] == expected
    with files["csv"].open(newline="") as file:
        assert [float(row["n"]) for row in csv.DictReader(file)] == expected
    assert pyarrow.parquet.read_table(files["parquet"]).column("n").to_pylist() == expected
