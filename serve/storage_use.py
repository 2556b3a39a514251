"""`/api/storage`: how much is kept of what, by table and retention class."""

from collections import Counter
from typing import Any

from fastapi import APIRouter, Response

from sensorium.serve.describe import answer
from sensorium.serve.pages import DiskUse, RetentionClassItem, StorageUse, TableUse, json_response
from sensorium.serve.services import Services

_EXAMPLE = {
    "bytes": 5_500_000,
    "tables": [
        {"table": "readings", "bytes": 4_000_000, "by_class": {}},
        {"table": "events", "bytes": 1_500_000, "by_class": {"0": 500_000, "1": 1_000_000}},
    ],
    "classes": [
        {
            "retention_class": 1,
            "device_types": ["pump"],
            "raw_days": 365,
            "event_days": 365,
            "rollup_1m_days": None,
            "rollup_1h_days": None,
            "rollup_1d_days": None,
        }
    ],
    "disk": {"free_bytes": 80_000_000_000, "total_bytes": 100_000_000_000, "low": False},
}


def routes(services: Services) -> APIRouter:
    """The routes of this page."""
    router = APIRouter(tags=["operation"])

    @router.get(
        "/api/storage",
        response_model=None,
        summary="Storage utilisation",
        responses=answer(StorageUse, "The largest table first.", _EXAMPLE),
    )
    async def storage() -> Response:
        """Over all databases of the log, with indexes; at most a minute old.

        `by_class` is of what is kept by retention class; "" is what has the rows of all classes. The types of
        class 0 are all those that no other class names. `disk` is null where no database is embedded.
        """
        return json_response(_use((await services.statistics()).get("services", [])))

    return router


def _use(services: Any) -> StorageUse:
    sizes: Counter[str] = Counter()
    by_class: dict[str, Counter[str]] = {}
    classes: list[RetentionClassItem] = []
    disk: DiskUse | None = None
    for service in services:
        if service.get("disk") is not None:
            disk = DiskUse(**service["disk"])
        sizes.update(service.get("storage_bytes", {}))
        for table, of_table in service.get("storage_class_bytes", {}).items():
            by_class.setdefault(table, Counter()).update(of_table)
        # The same in each database.
        classes = [RetentionClassItem(**item) for item in service.get("retention_classes", ())] or classes
    tables = [TableUse(table, size, dict(by_class.get(table, {}))) for table, size in sizes.most_common()]
    return StorageUse(sum(sizes.values()), tables, classes, disk)
