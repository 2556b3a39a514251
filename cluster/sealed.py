"""What lies in the database as a secret, at start: sealed with the present key, or said that it is not."""

import logging

from sensorium.storage.database import close_pool, open_pool
from sensorium.storage.sealing import Keys, SealBroken
from sensorium.storage.webhooks import PgWebhooks

_log = logging.getLogger(__name__)


async def seal_stored(dsn: str, keys: Keys) -> None:
    """Seal again what is stored plainly or under an old key; log what cannot be, and what stays plain."""
    pool = await open_pool(dsn, 1, "sensorium-seal")
    try:
        sealer = keys.sealer()
        webhooks = PgWebhooks(pool, sealer)
        if sealer.seals:
            changed = await webhooks.reseal()
            if changed:
                _log.info("sealed the secrets of %d webhooks with the present encryption key", changed)
        elif plain := await webhooks.plain():
            _log.warning(
                "the secrets of %d webhooks lie in the database unencrypted: set ENCRYPTION_KEY, such as to"
                " what `openssl rand -base64 32` gives, and keep it safe",
                plain,
            )
    except SealBroken as error:
        _log.warning("%s; what it is for is not sent until then", error)
    finally:
        await close_pool(pool)
