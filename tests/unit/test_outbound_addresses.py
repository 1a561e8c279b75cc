"""Which addresses may be called, in every form they are written; what a call may ask for; and how long a retry waits."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import AddressRefused, HttpRedirectError, HttpUnreachable, InvalidJob, InvalidRequest
from worker.tasks import outbound
from worker.tasks.outbound import anyone, backoff, look_up, public_only
from worker.tasks.outbound.answer import read_body, text_of
from worker.tasks.outbound.dialing import Deadline, Dialer
from worker.tasks.outbound.request import redirected

REFUSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254",
    "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1",
    "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fdff::1", "ff02::1", "fec0::1", "100::1", "5f00::1",
    "2001:db8::1", "3fff::1", "4000::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1",  # IPv4-mapped
    "::127.0.0.1", "::a00:1", "::ffff:0:127.0.0.1",  # IPv4-compatible, IPv4-translated
    "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1",  # NAT64, local NAT64
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:808:808::1",  # 6to4
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::7f00:1",  # Teredo
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "93.184.215.14", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
    "198.17.255.255", "198.20.0.0", "223.255.255.255",
    "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
]  # fmt: skip


class Unwritable:
    """Something JSON has no word for, and that prints the same in every process."""

    def __repr__(self) -> str:
        return "Unwritable()"


@pytest.mark.parametrize("text", REFUSED)
def test_address_that_is_not_public_is_refused(text: str) -> None:
    assert public_only(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_address_is_let_through(text: str) -> None:
    assert public_only(ip_address(text)) is None


def test_anyone_refuses_nothing() -> None:
    assert not any(anyone(ip_address(text)) for text in REFUSED)


@given(st.ip_addresses(v=4))
def test_address_mapped_into_ipv6_is_judged_as_itself(address) -> None:
    mapped, nat64 = (ip_address(f"{prefix}{address}") for prefix in ("::ffff:", "64:ff9b::"))
    assert public_only(mapped) == public_only(nat64) == public_only(address)


@given(st.ip_addresses())
def test_no_address_is_let_through_that_python_knows_to_be_special(address) -> None:
    if public_only(address) is None:
        plain = getattr(address, "ipv4_mapped", None) or address
        special = plain.is_private or plain.is_loopback or plain.is_link_local or plain.is_multicast or plain.is_unspecified
        assert not special


#: Loopback and metadata as numbers: decimal, hex, octal, short, mixed, with a dot at the end, mapped.
LOOPBACK_FORMS = [
    "http://127.0.0.1/", "http://2130706433/", "http://0x7f000001/", "http://0x7F.0.0.1/", "http://017700000001/",
    "http://127.1/", "http://127.0.1/", "http://0/", "http://0x0/", "http://[::1]/", "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/", "http://[0:0:0:0:0:0:0:1]/", "http://2852039166/", "http://0xa9fea9fe/", "http://169.254.43518/",
    "http://[::ffff:a9fe:a9fe]/", "http://LOCALHOST/",
]  # fmt: skip


@pytest.mark.parametrize("url", LOOPBACK_FORMS)
def test_forms_of_refused_addresses_are_refused_before_a_connection(url: str) -> None:
    with pytest.raises(AddressRefused):
        outbound.call(outbound.prepare(url, timeout_s=20), outbound.Policy(max_bytes=10))


@pytest.mark.parametrize("url", ["http://0177.0.0.1/", "http://127.0.0.01/", "http://①②⑦.⓪.⓪.①/", "http://256.256.256.256/", "http://localhost./"])
def test_odd_forms_of_addresses_reach_nothing(url: str) -> None:
    with pytest.raises((InvalidRequest, AddressRefused, HttpUnreachable)):
        outbound.call(outbound.prepare(url, timeout_s=20), outbound.Policy(max_bytes=10))


def test_one_refused_address_among_public_ones_refuses_the_name() -> None:
    dialer = Dialer(Deadline(5), public_only, lambda host, port: ["93.184.215.14", "10.0.0.1"])
    with pytest.raises(AddressRefused) as caught:
        dialer.connect_tcp("mixed.test", 80)
    assert caught.value.address == "10.0.0.1"
    assert "10.0.0.1" not in str(caught.value)


def test_name_without_addresses_cannot_be_reached() -> None:
    with pytest.raises(HttpUnreachable, match="no address"):
        Dialer(Deadline(5), public_only, lambda host, port: []).connect_tcp("empty.test", 80)


def test_numbers_are_looked_up_into_plain_addresses() -> None:
    assert look_up("2130706433", 80) == look_up("0x7f000001", 80) == look_up("127.1", 80) == ["127.0.0.1"]


# ---- what may be asked for


@pytest.mark.parametrize("url", [
    "", "example.com", "//example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "unix:///run/x.sock",
    "http://", "http:///path", "http://user@example.com/", "http://user:secret@example.com/", "http://example.com:0/",
    "http://example.com:99999/", "http://example.com/\r\nX: 1", "http://exa mple.com/", "http://[::1", "http://example.com/\0",
    "http://" + "a" * 9000, 7, None,
])  # fmt: skip
def test_bad_url_is_invalid(url) -> None:
    with pytest.raises(InvalidRequest, match="url") as caught:
        outbound.prepare(url)
    assert "secret" not in str(caught.value)
    assert isinstance(caught.value, InvalidJob)


@pytest.mark.parametrize("bad", [
    {"method": "GET /"}, {"method": ""}, {"method": "CONNECT"}, {"method": "trace"}, {"method": "GET\r\nX: 1"}, {"method": 7},
    {"headers": {"X": "a\r\nY: b"}}, {"headers": {"X": "a\nb"}}, {"headers": {"X": "a\0"}}, {"headers": {"X\n": "a"}},
    {"headers": {"": "a"}}, {"headers": {"X": 7}}, {"headers": ["X"]}, {"headers": {"a": "1", "A": "2"}},
    {"headers": {"X": "\ud800"}},
    {"headers": {"Host": "inside"}}, {"headers": {"content-length": "1"}}, {"headers": {"Transfer-Encoding": "chunked"}},
    {"timeout_s": 0}, {"timeout_s": -1}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"timeout_s": "1"},
    {"timeout_s": True}, {"timeout_s": 3601},
    {"body": Unwritable()}, {"body": float("nan")}, {"body": "\ud800"}, {"body": {1, 2}},
    {"expect": []}, {"expect": [99]}, {"expect": [True]}, {"expect": 200}, {"expect": ["200"]},
], ids=repr)  # fmt: skip
def test_bad_argument_is_invalid_and_named(bad: dict) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(bad))):
        outbound.prepare("http://example.com/", **bad)


def test_value_of_a_bad_header_is_not_repeated() -> None:
    with pytest.raises(InvalidRequest) as caught:
        outbound.prepare("http://example.com/", headers={"Authorization": "Bearer s3cret\n"})
    assert "s3cret" not in str(caught.value)


def test_json_body_and_text_body_carry_their_kind_unless_told() -> None:
    assert outbound.prepare("http://x.test", body={"ä": 1}).content == '{"ä": 1}'.encode()
    assert outbound.prepare("http://x.test", body={}).headers["content-type"] == "application/json"
    assert outbound.prepare("http://x.test", body="hi").headers["content-type"].startswith("text/plain")
    told = outbound.prepare("http://x.test", body="<a/>", headers={"Content-Type": "text/xml"})
    assert told.headers["content-type"] == "text/xml"


def test_idempotency_key_of_the_caller_wins() -> None:
    assert outbound.prepare("http://x.test").with_key("job").headers["idempotency-key"] == "job"
    own = outbound.prepare("http://x.test", headers={"IDEMPOTENCY-KEY": "mine"})
    assert own.with_key("job").headers["idempotency-key"] == "mine"


# ---- redirects, by their rules


@pytest.mark.parametrize(("status", "method", "after"), [
    (301, "POST", "GET"), (302, "POST", "GET"), (303, "POST", "GET"), (303, "PUT", "GET"), (301, "PUT", "PUT"),
    (303, "HEAD", "HEAD"), (307, "POST", "POST"), (308, "POST", "POST"), (302, "GET", "GET"),
])  # fmt: skip
def test_redirect_keeps_or_changes_the_method(status: int, method: str, after: str) -> None:
    request = outbound.prepare("http://a.test/x", method, body="text")
    after_it = redirected(request, status, "/y")
    assert after_it.method == after
    assert str(after_it.url) == "http://a.test/y"
    kept = after == method
    assert (after_it.content is not None) is kept
    assert ("content-type" in after_it.headers) is kept


@pytest.mark.parametrize("target", ["http://b.test/", "http://a.test:81/", "https://a.test/"])
def test_redirect_to_another_origin_takes_no_secrets_along(target: str) -> None:
    secrets = {"Authorization": "s", "Cookie": "s", "X-Api-Key": "s", "Idempotency-Key": "s"}
    request = outbound.prepare("http://a.test/x", headers={**secrets, "Accept": "text/xml"})
    assert redirected(request, 307, target).headers == {"accept": "text/xml"}
    assert redirected(request, 307, "http://a.test:80/y").headers == request.headers


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://a.test/", "http://u:p@a.test/", "http://a.test/", "http://[::1"])
def test_redirect_to_where_no_call_can_go_is_an_error(target: str) -> None:
    with pytest.raises(HttpRedirectError):
        redirected(outbound.prepare("https://a.test/x"), 302, target)


# ---- bodies


def test_two_packets_in_one_body_are_cut_after_the_first() -> None:
    packed = gzip.compress(b"one") + gzip.compress(b"two")
    assert read_body([packed], "gzip", 100) == (b"one", True)
    assert read_body([gzip.compress(b"one") + b"\0\0"], "gzip", 100) == (b"one", False)


def test_body_of_exactly_the_limit_is_whole() -> None:
    for packing, packed in (("", b"x" * 10), ("gzip", gzip.compress(b"x" * 10))):
        assert read_body([packed], packing, 10) == (b"x" * 10, False)
        assert read_body([packed], packing, 9) == (b"x" * 9, True)
        assert read_body([packed], packing, 0) == (b"", True)


@given(st.binary(max_size=2000), st.integers(1, 50))
def test_packed_body_is_the_same_however_it_is_cut_in_parts(content: bytes, size: int) -> None:
    packed = gzip.compress(content)
    parts = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert read_body(parts, "gzip", 5000) == (content, False)


@pytest.mark.parametrize("packed", [gzip.compress(b"x" * 1000, mtime=0)[:-5], b"not gzip"])
def test_broken_gzip_is_no_sound_answer(packed: bytes) -> None:
    with pytest.raises(HttpUnreachable, match="broken"):
        read_body([packed], "gzip", 5000)


def test_packing_that_was_not_asked_for_is_left_packed() -> None:
    assert read_body([b"..."], "br", 5000) == (b"", True)
    assert read_body([b"..."], "gzip, gzip", 5000) == (b"", True)


def test_text_is_read_in_its_charset_but_not_in_pythons_own() -> None:
    assert text_of("ä".encode("latin-1"), "text/plain; charset=ISO-8859-1") == "ä"
    assert text_of("ä".encode(), "text/plain") == "ä"
    assert text_of(b"\\ud800", "text/plain; charset=unicode_escape") == "\\ud800"
    assert text_of(b"\xff", "text/plain; charset=rot13") == "\ufffd"


# ---- waiting


def test_wait_doubles_up_to_the_cap() -> None:
    bounds = [backoff.delay_s(n, chance=lambda: 1.0) for n in range(12)]
    assert bounds[:6] == [1, 2, 4, 8, 16, 32]
    assert bounds[-1] == backoff.CAP_S
    assert backoff.delay_s(10_000, chance=lambda: 1.0) == backoff.CAP_S
    assert backoff.delay_s(5, chance=lambda: 0.0) == 0.0


def test_wait_is_spread_over_the_whole_range() -> None:
    waits = [backoff.delay_s(4) for _ in range(400)]
    assert min(waits) < 3 < 13 < max(waits) <= 16


def test_server_is_never_asked_again_earlier_than_it_said() -> None:
    assert all(120 <= backoff.delay_s(0, 120.0) <= 121 for _ in range(50))
    assert backoff.delay_s(0, backoff.LONGEST_S) == backoff.LONGEST_S


@pytest.mark.parametrize(("text", "seconds"), [
    ("0", 0), ("7", 7), (" 120 ", 120), ("999999", 3600), ("9" * 6000, 3600),
    ("-1", None), ("1.5", None), ("soon", None), ("", None), ("٣", None),
    ("Wed, 31 Feb 2030 00:00:00 GMT", None), ("Mon, 99999999999 Jan 2030 00:00:00 GMT", None),
])  # fmt: skip
def test_retry_after_in_seconds(text: str, seconds: float | None) -> None:
    assert backoff.parse_retry_after(text, datetime.now(UTC)) == seconds


@pytest.mark.parametrize(("ahead", "seconds"), [(90, 90), (-90, 0), (86_400, 3600)])
def test_retry_after_as_a_date(ahead: int, seconds: float) -> None:
    now = datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert backoff.parse_retry_after(format_datetime(now + timedelta(seconds=ahead), usegmt=True), now) == seconds


@given(st.text(max_size=40))
def test_retry_after_never_raises(text: str) -> None:
    found = backoff.parse_retry_after(text, datetime.now(UTC))
    assert found is None or 0 <= found <= backoff.LONGEST_S
