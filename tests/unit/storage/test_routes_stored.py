"""Which devices are behind another system, read from their metadata."""

import pytest
from storage_rows import registration

from sensorium.actors.records import Commit
from sensorium.storage import routes as module
from sensorium.storage.database import Pool
from sensorium.storage.hosts import PgMembership
from sensorium.storage.log import PgLog
from sensorium.storage.routes import routes

pytestmark = pytest.mark.database


async def test_all_pages_of_one_protocol_are_read(
    dsn: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAGE", 2)
    log = PgLog(dsn, await PgMembership(pool).join("a"))
    try:
        devices = [registration(f"d{n}", "pump", sparkplug={"node": n}) for n in range(5)]
        others = [registration("x", "pump", tts={}), registration("y"), registration("z", sparkplug="no")]
        await log.commit(Commit(registrations=[*devices, *others]))
    finally:
        await log.close()
    assert await routes(dsn, "sparkplug") == [{"node": n} for n in range(5)]
    monkeypatch.setattr(module, "MAX_ROUTES", 3)
    assert len(await routes(dsn, "sparkplug")) == 3
