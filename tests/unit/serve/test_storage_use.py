"""How much is kept, over HTTP and in the metrics: all databases together, and classes once."""

from sensorium.serve.metrics_page import render
from sensorium.serve.pages import DiskUse
from sensorium.serve.storage_use import _use
from tests.unit.serve.world import World

CLASS = {
    "retention_class": 1,
    "device_types": ["pump"],
    **dict.fromkeys(("raw_days", "event_days", "rollup_1m_days", "rollup_1h_days", "rollup_1d_days"), 7),
}
SERVICE = {
    "name": "retention",
    "storage_bytes": {"readings": 10, "events": 7},
    "storage_class_bytes": {"events": {"": 1, "0": 2, "1": 4}},
    "retention_classes": [CLASS],
    "disk": {"free_bytes": 3, "total_bytes": 8, "low": True},
}


def test_the_databases_of_a_log_are_added_up() -> None:
    use = _use([SERVICE, {"name": "other"}, SERVICE | {"disk": None}])
    assert use.bytes == 34
    assert [(t.table, t.bytes, t.by_class) for t in use.tables] == [
        ("readings", 20, {}),
        ("events", 14, {"": 2, "0": 4, "1": 8}),
    ]
    assert use.disk == DiskUse(3, 8, True)
    assert [(c.retention_class, c.device_types, c.raw_days) for c in use.classes] == [(1, ["pump"], 7)]


def test_the_metrics_have_them_by_class() -> None:
    page = render({"services": [SERVICE, SERVICE | {"disk": None}]}).decode()
    assert "sensorium_disk_free_bytes 3.0\n" in page
    assert "sensorium_disk_bytes 8.0\n" in page
    assert 'sensorium_storage_bytes{table="events"} 14.0' in page
    assert 'sensorium_storage_class_bytes{retention_class="1",table="events"} 8.0' in page


async def test_nothing_was_looked_at_yet(platform: World) -> None:
    got = await platform.http.get("/api/storage")
    assert (got.status_code, got.json()) == (200, {"bytes": 0, "tables": [], "classes": [], "disk": None})
