"""One app for many tests: what it serves is looked up anew at each use, because building an app is slow."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import reduce
from typing import Any, Final

from fastapi import FastAPI

from sensorium.serve.app import build_app
from sensorium.serve.services import ActionSide, Services

_PARTS_OF_ACTIONS: Final = ("deliveries", "webhooks", "versions", "maintenance")
_PLAIN: Final = (bool, int, float, str, type(None))


def is_plain(value: object) -> bool:
    """Whether it is a value that becomes part of an app, instead of being asked at each use."""
    return isinstance(value, _PLAIN)


def kind_of(value: object) -> Any:
    """What an app that is built with a value serves others of, too."""
    if isinstance(value, ActionSide):
        return (ActionSide, value.webhook_schemes, value.webhook_networks)
    return value if is_plain(value) else type(value)


class Standing:
    """Stands for what `now()` gives at each use, also where an attribute was taken from it before."""

    def __init__(self, now: Callable[[], Any]) -> None:
        self._now = now

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._now(), name)
        return (
            (lambda *args, **named: getattr(self._now(), name)(*args, **named)) if callable(found) else found
        )

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._now()(*args, **named)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now())


class StandingApp:
    """An app over the services that were given last."""

    def __init__(self) -> None:
        self._current: Services | None = None
        self._app: FastAPI | None = None

    def over(self, services: Services) -> FastAPI:
        """The app, which serves these from now on. They have to be of the same kinds every time."""
        self._current = services
        if self._app is None:
            parts = {each.name: self._part(each.name) for each in fields(Services)}
            self._app = build_app(Services(**parts))
        return self._app

    def _part(self, name: str) -> Any:
        value = getattr(self._current, name)
        if isinstance(value, ActionSide):
            # Its parts are taken from it when the app is built.
            return replace(value, **{part: self._standing(name, part) for part in _PARTS_OF_ACTIONS})
        return value if is_plain(value) else self._standing(name)

    def _standing(self, *path: str) -> Standing:
        return Standing(lambda: reduce(getattr, path, self._current))
