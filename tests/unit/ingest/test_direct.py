"""Commands told by who sends them, as long as there is a broker."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sensorium.ingest.broker import free_port
from sensorium.ingest.direct import DirectDownlink
from sensorium.ingest.downlink import DownlinkSettings
from sensorium.ingest.mqtt_address import BrokerAddress


class Nobody:
    """A router that must not be asked."""

    pending = 0

    def message(self, *said: Any) -> None:
        raise AssertionError(f"{said} without a broker: nobody would tell the device")

    reading = message

    async def drained(self, below: int) -> None:
        return


async def heard() -> AsyncIterator[bool]:
    yield True


async def test_nothing_is_claimed_while_the_broker_is_away() -> None:
    settings = DownlinkSettings(address=BrokerAddress(host="127.0.0.1", port=free_port()))
    direct = DirectDownlink(settings, Nobody(), heard())
    await direct.claim("d", "c")
    await direct.start()
    async with asyncio.timeout(5):
        await direct.claim("d", "c")
        assert direct.statistics()["under_way"] == 0
        await direct.stop()
        await direct.claim("d", "c")
