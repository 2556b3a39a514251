"""Whether ports are free, told before anything is started that would need them."""

import socket

from sensorium.actors.errors import Unavailable


class PortTaken(Unavailable):
    """Somebody listens there already; the message names the setting to change."""


def check_free(host: str, port: int, flag: str) -> None:
    """Raise `PortTaken` when nobody can listen there now, naming the flag that sets the port."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the servers do it: what lingers of closed connections does not keep a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}); take another port with {flag}"
            ) from error
