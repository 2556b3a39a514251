"""What a platform of the oldest schema that ever held data has left behind.

There is no earlier release. `schema_0002.sql` was written by the code of the commit that first kept the log
in PostgreSQL (dedba79, migrations 1 and 2): two devices, 39 and 40 readings with a snapshot between, an
alarm that stands and one that has ended, a rule, dead letters. `EXPECTED` is what that code said of them. The
form of the windows in its snapshots is another than today's: they count anew from the snapshot on.
"""

from datetime import date
from pathlib import Path
from typing import Any, Final

from sensorium.storage.database import connect
from sensorium.storage.migrate import migrate
from sensorium.storage.partitions import attached, create

SCHEMA: Final = 2
WRITTEN: Final = date(2026, 11, 27)
"""The day whose partitions the rows of the log belong into."""

EXPECTED: Final[dict[str, dict[str, Any]]] = {
    "sensor-001": {
        "latest": {"temperature": (90.0, 1_704_112_740_000), "open": (False, 1_704_112_740_000)},
        "alarms": ["260fef4c84d46baadac25c1dd7cc2cdc"],
        "head": 41,
        "readings": 39,
        "window": (15, 590.5, 13.671706387849161, 32.5, 90.0),
    },
    "sensor-002": {
        "latest": {"temperature": (40.0, 1_704_112_800_000), "open": (True, 1_704_112_800_000)},
        "alarms": [],
        "head": 43,
        "readings": 40,
        "window": (15, 598.0, 13.548021585784726, 33.0, 40.0),
    },
}
"""By device: newest values and their times, active alarms, newest offset, and the window of 15 minutes over
`temperature`: count, sum, standard deviation, first and last."""


async def fill(dsn: str) -> None:
    """Make an empty database as that platform has left it."""
    await migrate(dsn, SCHEMA)
    connection = await connect(dsn, "sensorium-test")
    try:
        for table in ("readings", "events"):
            if WRITTEN not in {day for day, _ in await attached(connection, table)}:
                await create(connection, table, WRITTEN)
        await connection.execute(Path(__file__).with_name("schema_0002.sql").read_text())
    finally:
        await connection.close()
