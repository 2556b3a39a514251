"""What one GraphQL request reads by: loaders that gather what its fields ask for into one question each."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, TypeVar

import msgspec
import strawberry
from starlette.requests import Request
from starlette.websockets import WebSocket
from strawberry.dataloader import DataLoader

from sensorium.actors.errors import DeviceNotFound
from sensorium.actors.messages import DeviceInfo, GetDevice, GetLatest, GetTwin, GetWindow, Latest, WindowInfo
from sensorium.actors.records import Registration
from sensorium.actors.twin import TwinInfo
from sensorium.serve.services import ReadsForMany, Services

T = TypeVar("T")
ASKED_AT_ONCE: Final = 100
"""Devices of a request that are asked at the same time."""


class Context:
    """Made for one request, or for all of a WebSocket: so loaders gather, and remember nothing.

    Keys of the loaders of lists are a device id and what is asked of it.
    """

    def __init__(self, services: Services, reads: ReadsForMany, connection: Request | WebSocket) -> None:
        self.services = services
        self.request = connection
        self._at_once = asyncio.Semaphore(ASKED_AT_ONCE)
        self.registrations: DataLoader[str, Registration | None] = DataLoader(
            lambda ids: _in_order(ids, reads.registrations(ids)), cache=False
        )
        self.alarms = _lists(reads.alarms)
        self.commands = _lists(reads.commands)
        self.readings = _lists(reads.readings)
        self.infos: DataLoader[str, DeviceInfo | None] = DataLoader(
            lambda ids: self._ask_all(ids, GetDevice, DeviceInfo), cache=False
        )
        self.latest: DataLoader[str, Latest | None] = DataLoader(
            lambda ids: self._ask_all(ids, GetLatest, Latest), cache=False
        )
        self.windows: DataLoader[tuple[str, str, float | None], WindowInfo | None] = DataLoader(
            self._windows, cache=False
        )
        self.twins: DataLoader[str, TwinInfo | None] = DataLoader(
            lambda ids: self._ask_all(ids, GetTwin, TwinInfo), cache=False
        )

    async def _ask_all(self, device_ids: Sequence[str], message: Any, kind: type[T]) -> list[T | None]:
        """From the devices themselves; the router gathers what goes to one host."""
        asked = list(dict.fromkeys(device_ids))
        answers = await asyncio.gather(*(self._ask(message(device_id), kind) for device_id in asked))
        found = dict(zip(asked, answers, strict=True))
        return [found[device_id] for device_id in device_ids]

    async def _windows(self, keys: Sequence[tuple[str, str, float | None]]) -> list[WindowInfo | None]:
        return await asyncio.gather(*(self._ask(GetWindow(*key), WindowInfo) for key in keys))

    async def _ask(self, message: Any, kind: type[T]) -> T | None:
        async with self._at_once:
            try:
                answered = await self.services.router.ask(message, self.services.timeout_s)
            except DeviceNotFound:
                return None
        return msgspec.convert(answered, kind)


Info: TypeAlias = strawberry.Info[Context, None]


async def _in_order(ids: Sequence[str], reading: Awaitable[dict[str, T]]) -> list[T | None]:
    found = await reading
    return [found.get(device_id) for device_id in ids]


def _lists(read: Callable[..., Awaitable[dict[str, list[T]]]]) -> "DataLoader[tuple[Any, ...], list[T]]":
    """A loader of lists: one question for all devices of which the same is asked."""

    async def load(keys: Sequence[tuple[Any, ...]]) -> Sequence[list[T]]:
        asked: dict[tuple[Any, ...], list[str]] = {}
        for device_id, *what in keys:
            asked.setdefault(tuple(what), []).append(device_id)
        answers = await asyncio.gather(*(read(ids, *what) for what, ids in asked.items()))
        found = dict(zip(asked, answers, strict=True))
        return [found[tuple(what)].get(device_id, []) for device_id, *what in keys]

    return DataLoader(load, cache=False)
