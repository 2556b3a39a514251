"""The process in which vendors' JavaScript runs: one request a line in, one answer a line out.

Run as a program by `scripts`. Nothing of the platform is in it but codecs' sources and one frame at a time.
"""

import json
import resource
import sys
from typing import Any, Final

import quickjs

TIME_LIMIT_S: Final = 0.25
"""CPU time of one decoding."""
MEMORY_BYTES: Final = 16 * 1024 * 1024
STACK_BYTES: Final = 256 * 1024
ADDRESS_SPACE_BYTES: Final = 1024 * 1024 * 1024
MAX_ANSWER_CHARS: Final = 256 * 1024

# TS013 names decodeUplink and encodeDownlink; codecs for The Things Network v2 have Decoder and Encoder,
# those for ChirpStack v3 Decode.
_SHIM: Final = """
(function (text) {
    var input = JSON.parse(text), result;
    if (input.data !== undefined) {
        if (typeof encodeDownlink === "function") {
            result = encodeDownlink({ data: input.data, variables: input.variables });
        } else if (typeof Encoder === "function") {
            result = { bytes: Encoder(input.data, input.fPort), fPort: input.fPort };
        } else {
            throw new Error("the codec has none of encodeDownlink and Encoder");
        }
        if (result && result.bytes) { result.bytes = Array.from(result.bytes); }
    } else if (typeof decodeUplink === "function") {
        result = decodeUplink({
            bytes: input.bytes, fPort: input.fPort,
            recvTime: new Date(input.recvTime), variables: input.variables
        });
    } else if (typeof Decoder === "function") {
        result = { data: Decoder(input.bytes, input.fPort) };
    } else if (typeof Decode === "function") {
        result = { data: Decode(input.fPort, input.bytes, input.variables) };
    } else {
        throw new Error("the codec has none of decodeUplink, Decoder and Decode");
    }
    return JSON.stringify(result === undefined ? null : result);
})
"""

_FAILURES: Final = (quickjs.JSException, quickjs.StackOverflow, ValueError, MemoryError, RecursionError)


def _compiled(source: str) -> Any:
    context = quickjs.Context()
    context.set_memory_limit(MEMORY_BYTES)
    context.set_max_stack_size(STACK_BYTES)
    context.set_time_limit(TIME_LIMIT_S)
    context.eval(source)
    return context, context.eval(_SHIM)


def main() -> None:
    """Answer until the end of the input."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sources: dict[str, str] = json.loads(sys.stdin.readline())
    compiled: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        name = request["codec"]
        try:
            if name not in compiled:
                compiled[name] = _compiled(sources[name])
            answer = compiled[name][1](json.dumps(request["input"]))
            if not isinstance(answer, str) or len(answer) > MAX_ANSWER_CHARS:
                raise ValueError("the codec's answer is too large")
            reply = {"result": json.loads(answer)}
        except _FAILURES as error:
            # What a codec left behind when it was stopped is not worth trusting.
            compiled.pop(name, None)
            reply = {"error": str(error)[:300] or type(error).__name__}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
