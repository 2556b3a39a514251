"""The shortest way from a payload to a reading. In Python there is none shorter than the general way;
`_flat.c` has one for flat objects of numbers and booleans."""

from collections.abc import Callable

from sensorium.actors.messages import Value


class Flat:
    """Reads payloads for which nothing has to be said but yes.

    Args:
        approve: gives the names that equal ones are to be replaced by, or raises for names that are refused.
        max_future_ms, max_past_ms: how far a timestamp may lie after and before the receipt.
    """

    def __init__(
        self, approve: Callable[[tuple[str, ...]], tuple[str, ...]], max_future_ms: int, max_past_ms: int
    ) -> None:
        pass

    def read(self, payload: bytes, received_ms: int) -> tuple[int, tuple[str, ...], list[Value], bool] | None:
        """What `decode` would read, or None to ask `decode`: always right. Raises what `approve` raises."""
        return None
