"""Parts of long lists, and the conditions that pick them. Keyset cursors: a page costs what it holds."""

from typing import Any, Final, Generic, TypeVar

import msgspec

from sensorium.actors.errors import InvalidMessage

T = TypeVar("T")
MAX_PAGE: Final = 10_000


class Page(msgspec.Struct, Generic[T], frozen=True):
    """Part of a list. `next` is what the following page is asked for with as `after`; None at the end.

    It is made of numbers and strings only, so that it survives JSON.
    """

    items: list[T]
    next: Any = None


class Where:
    """The conditions of a query with their parameters."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments: list[Any] = list(arguments)
        self._conditions: list[str] = []

    def add(self, condition: str, *values: Any) -> None:
        """Add a condition; each `?` in it stands for one of `values`. Without any value given, nothing."""
        if all(value is None for value in values):
            return
        first, *rest = condition.split("?")
        for value, text in zip(values, rest, strict=True):
            self.arguments.append(value)
            first += f"${len(self.arguments)}{text}"
        self._conditions.append(first)

    def __str__(self) -> str:
        return f"WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


def cursor(after: Any, kind: type[T]) -> T:
    """The cursor, checked.

    Raises:
        InvalidMessage: it is not one that a page of this list gave.
    """
    try:
        return msgspec.convert(after, kind)
    except msgspec.ValidationError as e:
        raise InvalidMessage(
            "the cursor is not one of this list: take `next` as the page before gave it"
        ) from e


def check_limit(limit: int) -> int:
    """The limit, between 1 and `MAX_PAGE`; raises `InvalidMessage` otherwise."""
    if not 1 <= limit <= MAX_PAGE:
        raise InvalidMessage(f"a page holds 1 to {MAX_PAGE} items, not {limit}")
    return limit
