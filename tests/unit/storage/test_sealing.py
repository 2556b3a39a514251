"""Secrets at rest: they open with their key and at their place only, and keys can be changed."""

import pytest

from sensorium.cluster.sealed import seal_stored
from sensorium.storage.database import Pool, acquired
from sensorium.storage.sealing import PREFIX, Keys, SealBroken, Sealer
from sensorium.storage.webhooks import PgWebhooks, WebhookSpec

OLD, NEW = "an old key of sixteen", "a new key of sixteen, too"
URL = "https://example.org/hooks/T0K3N"


def test_what_is_sealed_opens_with_any_of_the_keys():
    sealed = Sealer(OLD).seal("secret", "place")
    assert sealed.startswith(PREFIX)
    assert "secret" not in sealed
    assert Sealer(NEW, [OLD]).open(sealed, "place") == "secret"
    assert Sealer(OLD).seal("secret", "place") != sealed
    assert not Sealer(NEW, [OLD]).is_current(sealed)
    assert Sealer(OLD).is_current(sealed)


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: (text, "other place"),
        lambda text: (text[:-8] + "AAAAAA==", "place"),
        lambda text: (text[:30], "place"),
        lambda text: (text + "!", "place"),
        lambda text: (text.replace(PREFIX, PREFIX + "0"), "place"),
    ],
)
def test_what_was_moved_or_changed_does_not_open(broken):
    text, place = broken(Sealer(OLD).seal("secret", "place"))
    with pytest.raises(SealBroken) as error:
        Sealer(OLD).open(text, place)
    assert "secret " not in str(error.value).replace("secret is", "").replace("secret was", "")


def test_without_a_key_nothing_is_sealed_and_nothing_sealed_opens():
    assert Sealer().seal("secret", "place") == "secret"
    assert Sealer().open("secret", "place") == "secret"
    with pytest.raises(SealBroken, match="set ENCRYPTION_KEY"):
        Sealer().open(Sealer(OLD).seal("secret", "place"), "place")


def test_keys_are_not_shown():
    assert OLD not in repr(Keys(OLD, (NEW,))) + repr(Keys(OLD).sealer())


@pytest.mark.database
async def test_webhooks_lie_sealed_and_keys_rotate(pool: Pool) -> None:
    async def stored() -> list[tuple[str, str]]:
        async with acquired(pool) as connection:
            rows = await connection.fetch("SELECT url, secret FROM webhooks ORDER BY name")
        return [(row["url"], row["secret"]) for row in rows]

    async with acquired(pool) as connection:
        await connection.execute("DELETE FROM webhooks")
    plain = PgWebhooks(pool)
    await plain.put("w", URL, "s3cret", WebhookSpec())
    assert await stored() == [(URL, "s3cret")]
    assert await plain.plain() == 1
    old = PgWebhooks(pool, Sealer(OLD))
    assert await old.reseal() == 1
    assert await old.reseal() == 0
    assert "s3cret" not in str(await stored())
    assert "T0K3N" not in str(await stored())
    assert await old.plain() == 0
    webhook = await old.get("w")
    assert webhook is not None
    assert (webhook.url, webhook.secret) == (URL, "s3cret")
    both = PgWebhooks(pool, Sealer(NEW, [OLD]))
    assert await both.reseal() == 1
    new = PgWebhooks(pool, Sealer(NEW))
    kept = await new.put("w", URL + "2", None, WebhookSpec(enabled=False))
    assert kept is not None
    assert (kept.url, kept.secret) == (URL + "2", "s3cret")
    with pytest.raises(SealBroken):
        await old.get("w")
    with pytest.raises(SealBroken):
        await old.put("w", URL, None, WebhookSpec())
    replaced = await old.put("w", URL, "another", WebhookSpec())
    assert replaced is not None
    assert replaced.secret == "another"
    assert await old.delete("w")


@pytest.mark.database
async def test_a_secret_moved_to_another_webhook_does_not_open(pool: Pool) -> None:
    webhooks = PgWebhooks(pool, Sealer(OLD))
    for name in ("mine", "theirs"):
        await webhooks.put(name, URL, name, WebhookSpec())
    async with acquired(pool) as connection:
        await connection.execute(
            "UPDATE webhooks SET secret = (SELECT secret FROM webhooks WHERE name = 'theirs')"
            " WHERE name = 'mine'"
        )
    with pytest.raises(SealBroken, match="webhooks/mine/secret"):
        await webhooks.get("mine")


@pytest.mark.database
async def test_the_platform_seals_at_its_start_or_says_what_it_cannot(
    dsn: str, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    async with acquired(pool) as connection:
        await connection.execute("DELETE FROM webhooks")
    await PgWebhooks(pool).put("w", URL, "s3cret", WebhookSpec())
    await seal_stored(dsn, Keys())
    assert "1 webhooks lie in the database unencrypted: set ENCRYPTION_KEY" in caplog.text
    await seal_stored(dsn, Keys(OLD))
    assert await PgWebhooks(pool).plain() == 0
    await seal_stored(dsn, Keys(NEW))
    assert "not configured" in caplog.text
    await seal_stored(dsn, Keys(NEW, (OLD,)))
    webhook = await PgWebhooks(pool, Sealer(NEW)).get("w")
    assert webhook is not None
    assert webhook.secret == "s3cret"
    assert "s3cret" not in caplog.text
    assert OLD not in caplog.text
