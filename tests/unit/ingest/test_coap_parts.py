"""The bounded parts of the CoAP server: memory of exchanges, block-wise transfers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.ingest import coap_blocks
from sensorium.ingest.coap_blocks import Block, Downloads, Incomplete, TooLarge, Uploads, cut
from sensorium.ingest.coap_exchanges import EXCHANGE_LIFETIME_S, Exchanges


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_message_is_known_for_its_lifetime() -> None:
    clock = Clock()
    exchanges = Exchanges(clock)
    assert not exchanges.complete
    assert exchanges.add(("a", 1))
    exchanges["a", 1] = "answer"
    assert not exchanges.add(("a", 1))
    assert exchanges.add(("b", 1))
    assert (exchanges.response(("a", 1)), exchanges.response(("b", 1))) == ("answer", None)
    clock.now_s += EXCHANGE_LIFETIME_S
    assert exchanges.complete
    assert exchanges.add(("a", 1))
    assert len(exchanges) == 1


def test_a_full_memory_forgets_and_says_so() -> None:
    clock = Clock()
    exchanges = Exchanges(clock, max_exchanges=2)
    clock.now_s += EXCHANGE_LIFETIME_S
    for mid in (1, 2):
        assert exchanges.add(("a", mid))
    assert exchanges.complete
    assert exchanges.add(("a", 3))
    assert (len(exchanges), ("a", 1) in exchanges, exchanges.complete) == (2, False, False)
    clock.now_s += EXCHANGE_LIFETIME_S
    assert exchanges.complete


@given(st.binary(max_size=200), st.integers(0, 3))
def test_what_is_cut_is_put_together_again(content: bytes, exponent: int) -> None:
    uploads = Uploads(1000, Clock())
    number, whole = 0, None
    while whole is None:
        part, block = cut(content, Block(number, False, exponent))
        assert block is not None
        assert len(part) <= 16 << exponent
        whole = uploads.add("key", block, part)
        number += 1
    assert whole == content
    assert len(uploads) == 0


def test_bad_uploads_are_dropped() -> None:
    clock = Clock()
    uploads = Uploads(40, clock)
    with pytest.raises(Incomplete):
        uploads.add("k", Block(1, True, 0), b"x" * 16)
    assert uploads.add("k", Block(0, True, 0), b"x" * 16) is None
    with pytest.raises(Incomplete, match="begins at 32"):
        uploads.add("k", Block(2, False, 0), b"x")
    assert uploads.add("k", Block(0, True, 0), b"x" * 16) is None
    with pytest.raises(Incomplete, match="shorter"):
        uploads.add("k", Block(1, True, 0), b"x")
    for number in (0, 1):
        assert uploads.add("k", Block(number, True, 0), b"x" * 16) is None
    with pytest.raises(TooLarge):
        uploads.add("k", Block(2, False, 0), b"x" * 9)
    assert uploads.add("k", Block(0, True, 0), b"x" * 16) is None
    clock.now_s += coap_blocks.UPLOAD_LIFETIME_S
    with pytest.raises(Incomplete):
        uploads.add("k", Block(1, False, 0), b"x")
    assert len(uploads) == 0


def test_unfinished_uploads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coap_blocks, "MAX_UPLOADS", 2)
    monkeypatch.setattr(coap_blocks, "MAX_UPLOADED_BYTES", 40)
    uploads = Uploads(1000, Clock())
    for key in "abc":
        uploads.add(key, Block(0, True, 0), b"x" * 16)
    assert len(uploads) == 2
    uploads.add("c", Block(1, True, 0), b"x" * 16)
    assert len(uploads) == 1
    assert uploads.add("c", Block(2, False, 0), b"y") == b"x" * 32 + b"y"


def test_downloads_are_kept_for_the_latest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coap_blocks, "MAX_DOWNLOADS", 2)
    downloads = Downloads()
    for key in "abc":
        downloads.keep(key, key.encode())
    assert [downloads.kept(key) for key in "abc"] == [None, b"b", b"c"]


def test_a_short_answer_needs_no_block() -> None:
    assert cut(b"x" * 1024, None) == (b"x" * 1024, None)
    assert cut(b"x" * 1025, None) == (b"x" * 1024, Block(0, True, 6))
    with pytest.raises(Incomplete):
        cut(b"x" * 10, Block(1, False, 0))
