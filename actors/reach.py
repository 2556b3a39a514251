"""Which machines answer at this moment, long before Ray says that one is gone."""

import select
import socket
import time
from collections.abc import Sequence
from typing import Final

ANSWER_WITHIN_S: Final = 0.3
"""To open a connection within one network. It is waited for only where a machine does not answer at all."""


def answering(addresses: Sequence[tuple[str, int]], within_s: float = ANSWER_WITHIN_S) -> list[bool]:
    """Whether a connection can be opened to each (address, TCP port), all tried at once. Blocks `within_s`
    at most.

    A machine that was lost refuses or is silent; a process that is only stopped still answers.
    """
    answers = [False] * len(addresses)
    poll = select.poll()
    opening: dict[int, tuple[int, socket.socket]] = {}
    try:
        for place, address in enumerate(addresses):
            tried = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
            opening[tried.fileno()] = (place, tried)
            tried.setblocking(False)
            tried.connect_ex(address)
            poll.register(tried, select.POLLOUT)
        deadline_s = time.monotonic() + within_s
        waiting = len(opening)
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            for number, _ in poll.poll(left_s * 1_000):
                place, tried = opening[number]
                answers[place] = tried.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                poll.unregister(tried)
                waiting -= 1
    finally:
        for _, tried in opening.values():
            tried.close()
    return answers
