"""What a notebook's function sees of a device: its state, read-only, where the device lives."""

from typing import Any

from sensorium.actors.device import Device, Surroundings
from sensorium.actors.messages import DeviceInfo, Latest, Value, WindowInfo
from sensorium.actors.records import Alarm
from sensorium.actors.twin import TwinInfo


class DeviceView:
    """A device during one call of a mapped function. Do not keep it."""

    def __init__(self, device: Device, around: Surroundings, now_ms: int) -> None:
        self._device = device
        self._around = around
        self._now_ms = now_ms

    @property
    def id(self) -> str:
        """The device's id."""
        return self._device.id

    @property
    def info(self) -> DeviceInfo:
        """Registration and connectivity."""
        info = self._device.info(self._now_ms, self._around)
        if info is None:
            raise LookupError(f"no device {self._device.id} is registered")
        return info

    @property
    def metadata(self) -> dict[str, Any]:
        """The registration's metadata."""
        return self.info.metadata

    @property
    def latest(self) -> Latest:
        """The newest value of each metric, with its time."""
        latest = self._device.newest_values()
        if latest is None:
            raise LookupError(f"no device {self._device.id} is registered")
        return latest

    @property
    def values(self) -> dict[str, Value]:
        """The newest value of each metric."""
        return {name: newest.value for name, newest in self.latest.metrics.items()}

    @property
    def twin(self) -> TwinInfo:
        """What is desired of the device and what it reports."""
        return self._device.twin.info(self._device.id)

    @property
    def alarms(self) -> list[Alarm]:
        """The active alarms."""
        return list(self._device.alarms.values())

    def window(self, metric: str, length_s: float | None = None) -> WindowInfo | None:
        """The metric's aggregates over a rolling window; None when the device has no such window."""
        return self._device.window(metric, length_s)
