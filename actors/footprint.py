"""What a device takes in memory, estimated from what it keeps and not from what its objects are made of.

The constants were fitted to the resident memory of hosts with 50,000 devices (`sensorium bench runtime`).
"""

from typing import Final

from msgspec.json import encode

from sensorium.actors.device import Device
from sensorium.actors.metrics import NUMBER

DEVICE_BYTES: Final = 3_000
"""A registered device without a reading: itself, its memory of readings, its places in our tables."""
METRIC_BYTES: Final = 150
WINDOW_BYTES: Final = 200
PANE_BYTES: Final = 80
"""Ten cells of eight bytes, for each number metric."""
FIELD_BYTES: Final = 130
"""Of a twin's field, besides what it takes as JSON: its pointer, its time, its place in both tables."""

WATCHER_BYTES: Final = 3_200
"""A detector on a metric: the ensemble, which keeps most. Measured with `tracemalloc`, not by hosts."""
MODEL_BYTES: Final = 500
"""What a model remembers of a device, besides its numbers."""


def footprint_bytes(device: Device) -> int:
    """About how many bytes the device takes, alarms and metadata at what is usual."""
    metrics = device.metrics
    numbers = metrics.kinds.count(NUMBER)
    size_bytes = DEVICE_BYTES + METRIC_BYTES * len(metrics.names)
    for window in device.windows:
        size_bytes += WINDOW_BYTES + numbers * (64 + PANE_BYTES * window.spec.panes)
    if device.detection is not None:
        size_bytes += WATCHER_BYTES * len(device.detection.watchers)
    if device.modelled is not None:
        for memory in device.modelled.memories.values():
            size_bytes += MODEL_BYTES + len(bytes(memory.numbers))
    for document in (device.twin.desired, device.twin.reported):
        if document.fields:
            size_bytes += len(encode(document.values)) + FIELD_BYTES * len(document.fields)
    return size_bytes
