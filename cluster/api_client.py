"""What the commands ask of a running platform over HTTP. Not a client library: people use the API itself."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self
from urllib.parse import quote

import httpx
import msgspec

from sensorium.actors.origin import this_user
from sensorium.actors.rules import RuleSpec
from sensorium.cluster.errors import PlatformUnreachable
from sensorium.serve.headers import BY_HEADER, WAY_HEADER

TRIES = 6
"""Of a request that meets a platform which is starting, busy or restarting, before giving up."""
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 5.0
STREAM_TIMEOUT_S = 120.0
"""Between two pieces: the columns of a large export are looked for before the first."""
_BUSY = frozenset({429, 502, 503, 504})


class PlatformApi:
    """The HTTP API of one platform, with bounded retries while it is busy or not there.

    Raises:
        PlatformUnreachable: from every call, when it did not answer after `TRIES` tries, or refused.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.AsyncClient(
            base_url=self.url, timeout=10.0, transport=transport, headers=_headers()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def register(self, registration: Mapping[str, object]) -> bool:
        """Register a device; False when it was registered already."""
        response = await self._request("POST", "/api/devices", json=registration, fine=(201, 409))
        return response.status_code == 201

    async def rule_names(self) -> set[str]:
        """The names of all rules."""
        response = await self._request("GET", "/api/analytics/rules")
        return {rule["spec"]["name"] for rule in response.json()["items"]}

    async def create_rule(self, spec: RuleSpec) -> None:
        """Add a rule."""
        await self._request("POST", "/api/analytics/rules", json=msgspec.to_builtins(spec), fine=(201,))

    async def active_alarms(self, limit: int) -> list[dict[str, Any]]:
        """Up to `limit` active alarms, newest first, as `actors.records.Alarm` says it in JSON."""
        response = await self._request("GET", "/api/alarms", params={"state": "ACTIVE", "limit": limit})
        items: list[dict[str, Any]] = response.json()["items"]
        return items

    async def nodes(self) -> list[dict[str, Any]]:
        """The machines of the cluster, as `serve.pages.NodeItem` says it in JSON."""
        items: list[dict[str, Any]] = (await self._request("GET", "/api/nodes")).json()["items"]
        return items

    async def hosts(self) -> dict[str, Any]:
        """The hosts, as `serve.pages.HostList` says it in JSON."""
        found: dict[str, Any] = (await self._request("GET", "/api/hosts")).json()
        return found

    async def scale(self, hosts: int) -> None:
        """Ask for that many hosts."""
        await self._request("POST", "/api/hosts/scale", params={"hosts": hosts}, fine=(202,))

    async def steer_node(self, node_id: str, what: str) -> None:
        """Ask for a node to be "drain"ed or "undrain"ed."""
        await self._request("POST", f"/api/nodes/{quote(node_id, safe='')}/{what}", fine=(202,))

    async def bulk_command(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Give in a command to many devices, as `serve.bulk_models.BulkStatus` says it in JSON."""
        found: dict[str, Any] = (
            await self._request("POST", "/api/commands/bulk", json=dict(body), fine=(202,))
        ).json()
        return found

    async def bulk_job(self, job_id: str) -> dict[str, Any]:
        """How far it is, as `bulk_command` says it."""
        path = f"/api/commands/bulk/{quote(job_id, safe='')}"
        found: dict[str, Any] = (await self._request("GET", path)).json()
        return found

    async def cancel_bulk_job(self, job_id: str) -> None:
        """Ask for it to be cancelled."""
        await self._request("DELETE", f"/api/commands/bulk/{quote(job_id, safe='')}", fine=(202,))

    async def projections(self) -> list[dict[str, Any]]:
        """The projections, as `serve.pages.ProjectionItem` says it in JSON."""
        items: list[dict[str, Any]] = (await self._request("GET", "/api/projections")).json()["items"]
        return items

    async def steer_projection(self, name: str, what: str, to_ms: int | None = None) -> dict[str, Any]:
        """Ask for it to "pause", "resume" or "rewind"; how it stands now, before that is done."""
        parameters = {} if to_ms is None else {"to_ms": to_ms}
        path = f"/api/projections/{quote(name, safe='')}/{what}"
        response = await self._request("POST", path, params=parameters, fine=(202,))
        item: dict[str, Any] = response.json()
        return item

    async def audit(self, wanted: Mapping[str, str]) -> list[dict[str, Any]]:
        """A page of the audit log, the newest entry first."""
        said = await self._request("GET", "/api/audit", params=dict(wanted))
        items: list[dict[str, Any]] = said.json()["items"]
        return items

    async def metrics(self) -> str:
        """The Prometheus page."""
        return (await self._request("GET", "/metrics")).text

    async def readiness(self) -> dict[str, Any]:
        """The body of `/readyz`, whether ready or not. Asked once."""
        try:
            response = await self._client.get("/readyz")
            body = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise PlatformUnreachable(f"{self.url} does not answer: {_reason(error)}") from error
        return {"ready": response.status_code == 200, **(body if isinstance(body, dict) else {})}

    async def stream(self, path: str, parameters: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body of an answer of any length, piece by piece. Asked once.

        Raises:
            PlatformUnreachable: refused, or no answer.
            httpx.TransportError: the answer broke off.
        """
        request = self._client.build_request("GET", path, params=parameters, timeout=STREAM_TIMEOUT_S)
        try:
            response = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            raise PlatformUnreachable(
                f"{self.url} does not answer: {_reason(error)}; is the platform up?"
            ) from error
        try:
            if response.status_code != 200:
                await response.aread()
                raise PlatformUnreachable(f"GET {self.url}{path}: {_problem(response)}")
            async for piece in response.aiter_bytes():
                yield piece
        finally:
            await response.aclose()

    async def _request(
        self, method: str, path: str, *, fine: tuple[int, ...] = (200,), **options: Any
    ) -> httpx.Response:
        wait_s = FIRST_WAIT_S
        for tries_left in reversed(range(TRIES)):
            try:
                response = await self._client.request(method, path, **options)
            except httpx.TransportError as error:
                if not tries_left:
                    raise PlatformUnreachable(
                        f"{self.url} does not answer: {_reason(error)}; is the platform up?"
                    ) from error
            else:
                if response.status_code in fine:
                    return response
                if response.status_code not in _BUSY or not tries_left:
                    raise PlatformUnreachable(f"{method} {self.url}{path}: {_problem(response)}")
                wait_s = max(wait_s, _retry_after_s(response))
            await asyncio.sleep(min(wait_s, LONGEST_WAIT_S))
            wait_s *= 2
        raise AssertionError("the last try returns or raises")


def _headers() -> dict[str, str]:
    return {BY_HEADER: quote(this_user("cli").by), WAY_HEADER: "cli"}


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else 0.0


def _problem(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return f"{response.status_code} {response.reason_phrase}"
    detail = body.get("detail") or body.get("title") if isinstance(body, dict) else None
    return f"{response.status_code} {detail or response.reason_phrase}"
