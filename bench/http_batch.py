"""How many readings a second come in over HTTP in batches, each answered after its commit.

`make bench-http` or `python bench/http_batch.py [--json] [--seconds 12] [--batch 1000] [--connections 4]`:
`POST /api/data` with readings of many devices, as a gateway sends them, through a whole platform with its
proxy. At the end what was accepted is held against the log.
"""

import argparse
import asyncio
import gzip
import itertools
import json
import statistics
import time
from collections import Counter
from typing import Any

import httpx
import msgspec
from registered import platform_with
from surroundings import machine

DEVICES = 1_000
WARM_UP_S = 3.0


async def measured(url: str, device_ids: list[str], options: argparse.Namespace) -> dict[str, Any]:
    late_ms: list[float] = []
    statuses: Counter[int] = Counter()
    numbers = itertools.count()
    accepted = counted = 0
    begin_s = time.perf_counter()
    end_s = begin_s + WARM_UP_S + options.seconds
    headers = {"Content-Type": "application/json"} | ({"Content-Encoding": "gzip"} if options.gzip else {})

    async def gateway(client: httpx.AsyncClient) -> None:
        nonlocal accepted, counted
        while (began_s := time.perf_counter()) < end_s:
            now_ms = time.time_ns() // 1_000_000
            batch = [
                {
                    "device_id": device_ids[n % len(device_ids)],
                    "data": {"temperature": n % 40 + 0.5, "humidity": n % 100, "n": n, "timestamp": now_ms},
                }
                for n in itertools.islice(numbers, options.batch)
            ]
            body = msgspec.json.encode(batch)
            response = await client.post(
                "/api/data", content=gzip.compress(body, 1) if options.gzip else body, headers=headers
            )
            statuses[response.status_code] += 1
            if response.status_code == 429:
                await asyncio.sleep(float(response.headers["Retry-After"]))
            elif response.status_code == 201:
                accepted += options.batch
                if began_s - begin_s >= WARM_UP_S:
                    counted += options.batch
                    late_ms.append((time.perf_counter() - began_s) * 1000)

    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.gather(*(gateway(client) for _ in range(options.connections)))
    took_s = time.perf_counter() - begin_s - WARM_UP_S
    cuts = statistics.quantiles(late_ms, n=100)
    return {
        "batch": options.batch,
        "connections": options.connections,
        "gzip": options.gzip,
        "readings_per_s": round(counted / took_s),
        "p50_ms": round(cuts[49], 1),
        "p99_ms": round(cuts[98], 1),
        "statuses": dict(statuses),
        "accepted": accepted,
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    device_ids = [f"bench-{n:05}" for n in range(DEVICES)]
    async with platform_with(device_ids) as platform:
        result = await measured(platform.http_url, device_ids, options)
        result["committed"] = await platform.committed()
    return {"machine": machine(), **result}


def show(result: dict[str, Any]) -> None:
    print(result["machine"])
    print(
        f"HTTP, batches of {result['batch']:,} over {result['connections']} connections:"
        f" {result['readings_per_s']:,} readings/s,"
        f" a batch p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms"
    )
    print(f"answers {result['statuses']}; accepted {result['accepted']:,}, committed {result['committed']:,}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=12.0, help="of the measured run")
    parser.add_argument("--batch", type=int, default=1_000, help="readings in a request, 10,000 at most")
    parser.add_argument("--connections", type=int, default=4, help="requests open at once")
    parser.add_argument("--gzip", action="store_true", help="pack the requests")
    options = parser.parse_args()
    result = asyncio.run(run(options))
    print(json.dumps(result)) if options.json else show(result)


if __name__ == "__main__":
    main()
