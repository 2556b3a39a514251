"""Noise as a pure function of seed and time, so that any moment of a simulation can be asked for again."""

import math
from zlib import crc32

_MASK = (1 << 64) - 1
_UNIT = 1 / 65_536
# Four uniforms have variance 4/12.
_SCALE = math.sqrt(3.0)


def mix(seed: int, number: int) -> int:
    """64 well-mixed bits of the two (the finaliser of SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    z = (seed + number * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def uniform(seed: int, number: int) -> float:
    """A number in [0, 1) of the two."""
    return (mix(seed, number) >> 11) / (1 << 53)


class Noise:
    """The noise of one channel of one device, with mean 0 and deviation 1, never beyond ±3.47.

    The bound is meant: a healthy device must not cross a limit by mere chance in a long run.
    """

    def __init__(self, seed: int, channel: str) -> None:
        self._seed = mix(seed, crc32(channel.encode()))

    def at(self, number: int) -> float:
        """The number-th value, independent of its neighbours."""
        bits = mix(self._seed, number)
        total = (bits & 0xFFFF) + (bits >> 16 & 0xFFFF) + (bits >> 32 & 0xFFFF) + (bits >> 48)
        return (total * _UNIT - 2.0) * _SCALE

    def white(self, time_s: float) -> float:
        """Independent from one millisecond to the next: a sensor's own noise."""
        return self.at(round(time_s * 1000))

    def smooth(self, time_s: float, knot_s: float) -> float:
        """Wanders from one independent value to the next within `knot_s` seconds: weather, load, drift."""
        knot, rest = divmod(time_s / knot_s, 1.0)
        weight = (1.0 - math.cos(math.pi * rest)) / 2.0
        return self.at(int(knot)) * (1.0 - weight) + self.at(int(knot) + 1) * weight


def daily(time_s: float, peak_h: float) -> float:
    """A cycle of one day in [-1, 1], highest at `peak_h` hours UTC."""
    return math.cos(2 * math.pi * (time_s / 86_400 - peak_h / 24))
