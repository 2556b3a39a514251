"""Machines that answer, refuse, or are silent."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from sensorium.actors.reach import answering


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as server:
        yield server


@pytest.fixture
def refusing() -> Iterator[tuple[str, int]]:
    """A port that is taken and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()


@pytest.fixture
def silent() -> Iterator[tuple[str, int]]:
    """A port whose queue is full: attempts to connect are dropped, as by a machine that is cut off."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()


def test_each_is_told_apart(
    listening: socket.socket, refusing: tuple[str, int], silent: tuple[str, int]
) -> None:
    there = listening.getsockname()
    assert answering([there, refusing, silent, there]) == [True, False, False, True]


def test_the_silent_are_not_waited_for_longer_than_said(silent: tuple[str, int]) -> None:
    began_s = time.monotonic()
    assert answering([silent, silent], within_s=0.1) == [False, False]
    assert 0.1 <= time.monotonic() - began_s < 2.0


def test_of_none_there_is_no_answer() -> None:
    assert answering([]) == []
