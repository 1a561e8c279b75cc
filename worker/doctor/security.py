"""Who can get in: the users of Redis, what crosses the network in clear text, and secrets that everybody knows."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import parse_qs, unquote, urlsplit

from worker.doctor.check import Check, Severity
from worker.doctor.site import Site, fields

#: Passwords that stand in examples, ours and others', and are tried first.
_KNOWN = frozenset(
    ("dev-only", "password", "postgres", "redis", "holdfast", "changeme", "change-me", "secret", "admin", "guest", "root", "test")
)
#: The modes in which Postgres is spoken to in clear text, or may be.
_CLEAR = ("disable", "allow", "prefer")


def _default_user(site: Site) -> Iterator[str]:
    for server in site.servers:
        flags = fields(server.ask("ACL", "GETUSER", "default"))["flags"]
        if b"on" not in flags:
            continue
        if b"nopass" in flags:
            yield f"the default user of Redis ({server.name}) is on and needs no password"
        elif not is_local(server.url):
            yield f"the default user of Redis ({server.name}) is on"


def _clear_text(site: Site) -> Iterator[str]:
    for name, url in (("REDIS_URL", site.conf.redis_url), ("CACHE_URL", site.conf.cache_url)):
        if urlsplit(url).scheme == "redis" and not is_local(url):
            yield f"{name} goes to another machine without TLS"
    url = site.conf.database_url
    mode = parse_qs(urlsplit(url).query).get("sslmode", ["prefer"])[0]
    if mode in _CLEAR and not is_local(url):
        yield f"DATABASE_URL goes to another machine with sslmode {mode}"


def _known_secrets(site: Site) -> Iterator[str]:
    urls = {"DATABASE_URL": site.conf.database_url, "REDIS_URL": site.conf.redis_url, "CACHE_URL": site.conf.cache_url}
    secrets = {name: urlsplit(url).password or "" for name, url in urls.items()}
    secrets["HOLDFAST_FLOWER_AUTH"] = site.conf.flower_auth.partition(":")[2]
    for name, secret in secrets.items():
        if unquote(secret) in _KNOWN:
            yield f"the password in {name} is one that everybody knows"


def is_local(url: str) -> bool:
    """Tell whether a URL names a server on this machine, which what is sent there does not leave: loopback, or a socket."""
    parts = urlsplit(url)
    host = parts.hostname or parse_qs(parts.query).get("host", [""])[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host in ("", "localhost") or unquote(host).startswith("/")


CHECKS = (
    Check(
        "redis.default-user", Severity.WARNING,
        "whoever reaches the server and knows or needs no password may read, change and flush everything",
        "make a user for each role as docs/guides/redis-in-production.md shows, and set `user default off`",
        _default_user,
    ),
    Check(
        "network.clear-text", Severity.WARNING,
        "passwords, arguments and results can be read and changed on the way",
        "use `rediss://` and `sslmode=verify-full`; see docs/guides/redis-in-production.md",
        _clear_text,
    ),
    Check(
        "secrets.default", Severity.CRITICAL,
        "it stands in an example, so it is the first that is tried",
        "set POSTGRES_PASSWORD, REDIS_PASSWORD and FLOWER_AUTH to long random texts, and change them on the servers",
        _known_secrets,
    ),
)  # fmt: skip
