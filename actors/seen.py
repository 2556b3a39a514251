"""The bounded memory by which a device recognises a reading that was delivered again."""

from sensorium.actors._seen_py import REMEMBERED

try:
    from sensorium.actors._seen import Seen
except ImportError:
    from sensorium.actors._seen_py import Seen

__all__ = ["REMEMBERED", "Seen"]
