"""Ray's own fault injection: what it is told by environment variables, which every process of a Ray reads."""

import json
from typing import Any, Final

TENTH: Final = (4, 4, 2, 20_000)
"""One call in ten: see `failing_calls`."""

_CALLS: Final = "CoreWorkerService.grpc_client.PushTask"
"""Every call of an actor: batches, pings, hand-overs, and what Ray Serve says to its replicas."""


def failing_calls(request: int, reply: int, on_the_way: int, late_us: int) -> dict[str, str]:
    """The variables for calls that fail.

    Args:
        request: of a hundred calls, those that never arrive.
        reply: those that are carried out, and whose answer is lost.
        on_the_way: those that fail at the caller while they are carried out.
        late_us: how late a call may be taken up, in microseconds.
    """
    failures: dict[str, dict[str, Any]] = {
        _CALLS: {
            "num_failures": -1,
            "req_failure_prob": request,
            "resp_failure_prob": reply,
            "in_flight_failure_prob": on_the_way,
        }
    }
    return {
        "RAY_testing_rpc_failure": json.dumps(failures),
        "RAY_testing_asio_delay_us": f"CoreWorkerService.grpc_server.PushTask=0:{late_us}",
    }
