"""A port that is taken is told by the name of what sets it."""

import socket

import pytest

from sensorium.cluster.ports import PortTaken, check_free


def test_a_taken_port_is_told_and_a_free_one_stays_free() -> None:
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        with pytest.raises(PortTaken, match=rf":{port} \(.+\); take another port with --http-port"):
            check_free("127.0.0.1", port, "--http-port")
    check_free("127.0.0.1", port, "--http-port")
    check_free("127.0.0.1", port, "--http-port")


def test_an_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(PortTaken, match="Cannot assign requested address"):
        check_free("192.0.2.77", 20_000, "--http-port")
