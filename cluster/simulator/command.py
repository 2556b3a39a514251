"""`sensorium simulate`: a fleet against a platform that runs already."""

import asyncio
import signal
from contextlib import suppress

from rich.console import Console

from sensorium.cluster.api_client import PlatformApi
from sensorium.cluster.errors import ungrouped
from sensorium.cluster.publisher import publishers
from sensorium.cluster.simulator.fleet import FleetSimulator, Simulation, prepare
from sensorium.cluster.simulator.responder import Responder
from sensorium.ingest.mqtt_address import BrokerAddress

PROGRESS_EVERY_S = 5.0


async def run(simulation: Simulation, http_url: str, broker: BrokerAddress, console: Console) -> None:
    """Simulate until the duration's end or Ctrl-C.

    Raises:
        PlatformUnreachable: the API or the broker does not answer.
        DeliveryFailed: the broker stayed away or refused.
    """
    devices = simulation.fleet()
    async with PlatformApi(http_url) as api:
        new = await prepare(api, devices)
    console.print(f"{len(devices)} devices, {new} of them new", highlight=False)
    async with (
        publishers(broker, "sensorium-simulate", simulation.connections) as clients,
        Responder(broker, [device.device_id for device in devices]),
    ):
        simulator = FleetSimulator(simulation, devices, clients)
        with ungrouped(), suppress(asyncio.CancelledError):
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(simulator.run())
                telling = tasks.create_task(_tell(simulator, console))
                for number in (signal.SIGINT, signal.SIGTERM):
                    asyncio.get_running_loop().add_signal_handler(number, work.cancel)
                work.add_done_callback(lambda _: telling.cancel())
    console.print(_line(simulator), highlight=False)


async def _tell(simulator: FleetSimulator, console: Console) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        console.print(_line(simulator), highlight=False)


def _line(simulator: FleetSimulator) -> str:
    figures = simulator.statistics()
    late = f", {figures['behind_s']:.1f} s late" if figures["behind_s"] >= 1 else ""
    return f"{figures['sent']:,.0f} sent, {figures['acked']:,.0f} acknowledged{late}"
