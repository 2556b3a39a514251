"""Telling people by e-mail, over one SMTP server: a message each, by a thread of its own."""

import asyncio
import smtplib
import ssl
from email.message import EmailMessage
from typing import Final

import msgspec

from sensorium.actors.action_plan import STORM
from sensorium.actors.actions import EmailAction, Transition, fields_of, filled
from sensorium.actors.records import Alarm
from sensorium.ingest.actions.carriers import Undeliverable, Undelivered
from sensorium.storage.delivery_rows import Claimed

SMTP_TIMEOUT_S: Final = 15.0
"""Of connecting, and of each answer."""

_OF_THE_SESSION: Final = frozenset((530, 534, 535, 538))
"""Replies that want encryption or a login first (RFC 4954, RFC 3207): what to mend is in the settings."""


class SmtpSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where mail goes.

    Attributes:
        security: "starttls", "tls" from the start, or "none".
        sender: the address that it comes from.
    """

    host: str
    port: int = 587
    security: str = "starttls"
    username: str | None = None
    password: str | None = None
    ca_file: str | None = None
    sender: str = "sensorium@localhost"

    def __repr__(self) -> str:
        return f"SmtpSettings({self.host}:{self.port})"


class EmailCarrier:
    """A `Carrier`. Each message bears the delivery's id as its `Message-ID`."""

    def __init__(self, settings: SmtpSettings) -> None:
        self._settings = settings

    async def send(self, delivery: Claimed, attempts: int) -> None:
        """As the port says. A 5xx of the server is for good, except while we introduce ourselves."""
        assert isinstance(delivery.action, EmailAction)
        await asyncio.to_thread(self._send, mail(delivery, delivery.action, self._settings.sender))

    async def close(self) -> None:
        """As the port says; each message had a connection of its own."""

    def _send(self, built: EmailMessage) -> None:
        try:
            with self._connected() as server:
                try:
                    refused = server.send_message(built)
                except smtplib.SMTPRecipientsRefused as error:
                    raise _refusal(error.recipients) from None
                if refused:
                    # Some have it: again would be twice for them.
                    raise Undeliverable(f"refused for {len(refused)} of the recipients: {_first(refused)}")
        except smtplib.SMTPAuthenticationError as error:
            # The server's text may repeat what was said to it.
            raise Undelivered(f"the SMTP server refused our password ({error.smtp_code})") from None
        except smtplib.SMTPResponseException as error:
            text = f"the SMTP server answered {error.smtp_code} {_text(error.smtp_error)}"
            permanent = (
                500 <= error.smtp_code < 600
                and error.smtp_code not in _OF_THE_SESSION
                and isinstance(error, smtplib.SMTPDataError | smtplib.SMTPSenderRefused)
            )
            raise (Undeliverable if permanent else Undelivered)(text) from None
        except (smtplib.SMTPException, OSError) as error:
            raise Undelivered(f"the SMTP server: {error or type(error).__name__}") from None

    def _connected(self) -> smtplib.SMTP:
        settings = self._settings
        tls = None if settings.security == "none" else ssl.create_default_context(cafile=settings.ca_file)
        server: smtplib.SMTP
        if settings.security == "tls":
            server = smtplib.SMTP_SSL(settings.host, settings.port, timeout=SMTP_TIMEOUT_S, context=tls)
        else:
            server = smtplib.SMTP(settings.host, settings.port, timeout=SMTP_TIMEOUT_S)
        try:
            if settings.security == "starttls":
                server.starttls(context=tls)
            if settings.username is not None:
                server.login(settings.username, settings.password or "")
        except BaseException:
            server.close()
            raise
        return server


def mail(delivery: Claimed, action: EmailAction, sender: str) -> EmailMessage:
    """The message, as it goes to the server."""
    built = EmailMessage()
    built["From"] = sender
    built["To"] = ", ".join(action.to)
    built["Message-ID"] = f"<{delivery.delivery_id}@{sender.rpartition('@')[2]}>"
    built["Auto-Submitted"] = "auto-generated"
    content = delivery.content
    if delivery.transition == STORM:
        subject = f"{content['rule_name']}: {content['count']} alarms"
        lines = [f"{content['count']} alarms of the rule {content['rule_name']} are told together.", ""]
        lines += [f"alarm {alarm_id}" for alarm_id in content["alarm_ids"]]
        text = "\n".join([*lines, "", f"devices: {', '.join(content['device_ids'])}", ""])
    else:
        alarm = msgspec.convert(content["alarm"], Alarm)
        fields = fields_of(alarm, Transition(delivery.transition))
        subject, text = filled(action.subject, fields), filled(action.body, fields)
    # What a device calls itself must not begin another header.
    built["Subject"] = " ".join(subject.split())[:900]
    built.set_content(text)
    return built


def _refusal(recipients: dict[str, tuple[int, bytes]]) -> Undelivered | Undeliverable:
    if all(500 <= code < 600 for code, _ in recipients.values()):
        return Undeliverable(f"all recipients are refused: {_first(recipients)}")
    return Undelivered(f"no recipient is taken now: {_first(recipients)}")


def _first(recipients: dict[str, tuple[int, bytes]]) -> str:
    code, text = next(iter(recipients.values()))
    return f"{code} {_text(text)}"


def _text(said: bytes | str) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said
