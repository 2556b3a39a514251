"""The section of the configuration for what rules have done: e-mail, and which webhooks may be asked."""

from ipaddress import ip_network
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from sensorium.cluster.sections import Days, File, Port, Section
from sensorium.ingest.actions.addresses import DEFAULT_NETWORKS, WORDS
from sensorium.ingest.actions.mail import SmtpSettings


class Actions(Section):
    """What rules have done about alarms."""

    enabled: bool = True
    """Whether anything is sent; without, rules may name actions and nothing becomes of them."""
    webhook_schemes: Annotated[list[Literal["https", "http"]], Field(min_length=1)] = Field(
        default=["https", "http"]
    )
    """Of the addresses that webhooks may have."""
    webhook_networks: list[Annotated[str, Field(max_length=64)]] = Field(
        default=list(DEFAULT_NETWORKS), max_length=64
    )
    """Where webhooks may be sent besides public addresses: `loopback`, `private`, or networks such as
    10.1.0.0/16. A name is resolved, what it resolves to is checked, and that is connected to."""
    keep_days: Days = 30
    """For so long what became of each message can be looked at."""
    smtp_host: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """The server that takes e-mail; without, rules cannot send any."""
    smtp_port: Port = 587
    smtp_security: Literal["starttls", "tls", "none"] = "starttls"
    smtp_username: Annotated[str, Field(min_length=1)] | None = None
    smtp_password: SecretStr | None = None
    """Or SMTP_PASSWORD."""
    smtp_ca_file: File | None = None
    smtp_sender: Annotated[str, Field(pattern=r"^[^@\s<>]+@[^@\s<>]+$")] = "sensorium@localhost"

    @field_validator("webhook_networks")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for text in value:
            if text not in WORDS:
                try:
                    ip_network(text)
                except ValueError:
                    raise ValueError(
                        f"{text}: is loopback, private or a network such as 10.1.0.0/16"
                    ) from None
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.smtp_host is None:
            given = [name for name in ("smtp_username", "smtp_password") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} needs smtp_host")
        if self.smtp_password is not None:
            if self.smtp_username is None:
                raise ValueError("smtp_password needs smtp_username")
            if self.smtp_security == "none":
                raise ValueError("smtp_password would be sent in the clear with smtp_security: none")
        return self

    def smtp(self) -> SmtpSettings | None:
        """As the carrier takes it; None when there is no server."""
        if self.smtp_host is None:
            return None
        return SmtpSettings(
            host=self.smtp_host,
            port=self.smtp_port,
            security=self.smtp_security,
            username=self.smtp_username,
            password=None if self.smtp_password is None else self.smtp_password.get_secret_value(),
            ca_file=None if self.smtp_ca_file is None else str(self.smtp_ca_file.absolute()),
            sender=self.smtp_sender,
        )
