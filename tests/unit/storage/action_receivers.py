"""Real servers that take what actions send: HTTP and SMTP, in the test's own loop."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = tuple[int, dict[str, str]]


@dataclass
class HttpReceiver:
    """Keeps the requests, and answers each as `answer` says."""

    answer: Callable[["Received"], Answer | None] = lambda _: (204, {})
    """None: none comes."""
    received: list["Received"] = field(default_factory=list)
    port: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/token-of-a-service"

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.received) < count:
                self.arrived.clear()
                await self.arrived.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readline():
                headers = {}
                while (line := await reader.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                received = Received(request.decode().split()[1], headers, body)
                self.received.append(received)
                self.arrived.set()
                answer = self.answer(received)
                if answer is None:
                    await asyncio.sleep(3600)
                    return
                status, more = answer
                lines = [f"HTTP/1.1 {status} x", *(f"{k}: {v}" for k, v in more.items()), "Content-Length: 0"]
                writer.write("\r\n".join([*lines, "", ""]).encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True)
class Received:
    path: str
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def http_receiver(
    answer: Callable[[Received], Answer | None] = lambda _: (204, {}),
) -> AsyncIterator[HttpReceiver]:
    receiver = HttpReceiver(answer)
    async with _serving(receiver.serve) as receiver.port:
        yield receiver


@dataclass
class SmtpReceiver:
    """Keeps the mails. With `context` it offers STARTTLS, and takes no mail before; `code` answers them."""

    context: ssl.SSLContext | None = None
    code: int = 250
    mails: list[str] = field(default_factory=list)
    port: int = 0
    encrypted: bool = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(text: str) -> None:
            writer.write(text.encode() + b"\r\n")

        try:
            say("220 receiver")
            while line := (await reader.readline()).decode().strip().upper():
                if line.startswith("EHLO"):
                    offers = self.context is not None and not self.encrypted
                    say("250-receiver\r\n250 STARTTLS" if offers else "250-receiver\r\n250 8BITMIME")
                elif line == "STARTTLS" and self.context is not None:
                    say("220 go ahead")
                    await writer.start_tls(self.context)
                    self.encrypted = True
                elif line == "DATA":
                    say("354 end with a dot")
                    mail = await reader.readuntil(b"\r\n.\r\n")
                    if self.code == 250:
                        self.mails.append(mail.decode())
                    say(f"{self.code} said")
                elif line == "QUIT":
                    say("221 bye")
                    await writer.drain()
                    return
                else:
                    say("250 ok" if self.encrypted or self.context is None else "530 STARTTLS first")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def smtp_receiver(
    context: ssl.SSLContext | None = None, code: int = 250
) -> AsyncIterator[SmtpReceiver]:
    receiver = SmtpReceiver(context, code)
    async with _serving(receiver.serve) as receiver.port:
        yield receiver


@asynccontextmanager
async def _serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], object],
) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[object]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))  # type: ignore[call-overload]
        tasks.add(task)
        await asyncio.wait([task])

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
