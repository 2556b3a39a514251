"""Which devices were used lately, in two segments, so that many used once do not displace those used often.

The segmented LRU of Karedla, Love and Wherry (1994): a device comes in on probation, its second use protects
it, and the protected are a share at most; beyond it the one unused for longest goes back on probation.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

PROTECTED_SHARE: Final = 0.8
"""The rest is what newcomers have to prove themselves in."""


class Recency:
    """Ids of devices in memory by their use. Each call takes constant time.

    Attributes:
        capacity: how many will be kept, as far as is known; the protected are a share of it.
    """

    __slots__ = ("_probation", "_protected", "capacity")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._probation: OrderedDict[str, None] = OrderedDict()
        self._protected: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._probation) + len(self._protected)

    def admit(self, device_id: str) -> None:
        """A device came in: its first use."""
        self._probation[device_id] = None

    def use(self, device_id: str) -> None:
        """A device that is in was used again."""
        protected = self._protected
        if device_id in protected:
            protected.move_to_end(device_id)
            return
        del self._probation[device_id]
        protected[device_id] = None
        if len(protected) > PROTECTED_SHARE * max(self.capacity, len(self)):
            demoted, _ = protected.popitem(last=False)
            self._probation[demoted] = None

    def put_back(self, device_id: str) -> None:
        """A device could not leave after all; it is the next to go."""
        self._probation[device_id] = None
        self._probation.move_to_end(device_id, last=False)

    def remove(self, device_ids: Iterable[str]) -> None:
        """Devices went; ids that are not in are passed over."""
        for device_id in device_ids:
            if self._protected.pop(device_id, self) is self:
                self._probation.pop(device_id, None)

    def oldest(self) -> Iterator[str]:
        """All, the first to go first: those on probation, then the protected, each by their last use."""
        return chain(self._probation, self._protected)

    def oldest_of_each(self) -> tuple[Iterator[str], Iterator[str]]:
        """Those on probation and the protected, each from the one unused for longest."""
        return iter(self._probation), iter(self._protected)
