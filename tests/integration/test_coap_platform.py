"""CoAP on the shared platform: a datagram's way into the log."""

import json

import aiocoap
import httpx
import pytest
from platform_process import PlatformProcess

pytestmark = pytest.mark.ray


async def test_a_reading_over_coap_is_there_when_it_is_answered(
    platform: PlatformProcess, api: httpx.AsyncClient
) -> None:
    body = {"device_id": "coap-1", "device_type": "temperature"}
    assert (await api.post("/api/devices", json=body)).status_code == 201
    base = f"coap://127.0.0.1:{platform.coap_port}"
    client = await aiocoap.Context.create_client_context(transports=["udp6"])
    try:
        post = aiocoap.Message(
            code=aiocoap.POST,
            uri=f"{base}/sensors/coap-1",
            payload=b'[{"bn":"coap-1:","n":"t","v":21.5}]',
            content_format=110,
        )
        assert (await client.request(post).response).code.dotted == "2.04"
        get = aiocoap.Message(code=aiocoap.GET, uri=f"{base}/devices/coap-1/latest")
        latest = json.loads((await client.request(get).response).payload)
        assert latest["metrics"]["t"]["value"] == 21.5
        assert latest == (await api.get("/api/devices/coap-1/data/latest")).json()
    finally:
        await client.shutdown()
