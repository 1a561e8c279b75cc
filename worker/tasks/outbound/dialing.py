"""Connections for outbound calls: to exactly the address that was checked, and none longer than the whole call may take."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Any

import httpcore

from worker.errors import AddressRefused, HttpTimeout, HttpUnreachable
from worker.tasks.outbound.addresses import Address, Judge

#: Looks a name up: the texts of its addresses, in the order they are to be tried.
Resolver = Callable[[str, int], Sequence[str]]

#: Addresses of one name that are tried; the others are checked all the same.
_TRIED = 4


def look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a name as the system knows it; the old forms of IPv4 (`2130706433`, `0x7f.1`) come back plain."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))


class Deadline:
    """The moment at which a call is over, whatever it is doing then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._started = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def left(self) -> float:
        """Return the seconds left, more than zero. Raises `HttpTimeout` when there are none."""
        left = self.seconds - self.elapsed
        if left <= 0:
            raise self.over()
        return left

    def over(self) -> HttpTimeout:
        """Return the error that says so."""
        return HttpTimeout(f"the call did not end within {self.seconds:g} s")


class Dialer(httpcore.NetworkBackend):
    """Opens a call's connections.

    A name is looked up once a connection, every address it has is judged, and the socket connects to one of those: there is no
    second look-up that could say something else (DNS rebinding). TLS still verifies the name, and `Host` still carries it.
    """

    def __init__(self, deadline: Deadline, judge: Judge, resolve: Resolver) -> None:
        self._deadline = deadline
        self._judge = judge
        self._resolve = resolve

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a name or an address. Raises `AddressRefused`, `HttpTimeout` or `HttpUnreachable`."""
        addresses = self._addresses(host, port)[:_TRIED]
        failure: OSError | None = None
        for tried, address in enumerate(addresses):
            # One address that swallows everything must not use up the time of the others.
            share = self._deadline.left() / (len(addresses) - tried)
            try:
                return _Stream(_connected(address, port, share), self._deadline)
            except OSError as exc:
                failure = exc
        self._deadline.left()
        raise HttpUnreachable(f"cannot connect to {host}:{port}: {failure}") from failure

    def _addresses(self, host: str, port: int) -> list[Address]:
        try:
            found = [ip_address(text) for text in _within(self._deadline, lambda: self._resolve(host, port))]
        except (OSError, ValueError) as exc:
            raise HttpUnreachable(f"the name {host!r} cannot be looked up: {exc}") from exc
        if not found:
            raise HttpUnreachable(f"the name {host!r} has no address")
        for address in found:
            if why := self._judge(address):
                # The address itself is kept out of the text: whoever asks shall not map the inside by its names.
                raise AddressRefused(
                    f"{host!r} may not be called: its address is {why}; HOLDFAST_HTTP_ALLOW_PRIVATE=1 allows it",
                    host=host, address=str(address),
                )  # fmt: skip
        return found


def _within(deadline: Deadline, work: Callable[[], Sequence[str]]) -> Sequence[str]:
    """Do it in a thread and wait no longer than the call may take: the system's look-up knows no time limit of ours."""
    done: list[Sequence[str]] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run, name="holdfast-look-up", daemon=True)
    thread.start()
    thread.join(deadline.left())
    if failed:
        raise failed[0]
    if not done:
        raise deadline.over()
    return done[0]


def _connected(address: Address, port: int, timeout_s: float) -> socket.socket:
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


class _Stream(httpcore.NetworkStream):
    """A socket on which each step may take only what is left of the whole call; a server that drips bytes gains nothing."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._sock.settimeout(self._deadline.left())
            return self._sock.recv(max_bytes)
        except TimeoutError as exc:
            raise self._deadline.over() from exc
        except OSError as exc:
            raise httpcore.ReadError(str(exc)) from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        rest = memoryview(buffer)
        try:
            while rest:
                self._sock.settimeout(self._deadline.left())
                rest = rest[self._sock.send(rest) :]
        except TimeoutError as exc:
            raise self._deadline.over() from exc
        except OSError as exc:
            # httpcore then still reads the answer of a server that refused the body half-way.
            raise httpcore.WriteError(str(exc)) from exc

    def close(self) -> None:
        self._sock.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            self._sock.settimeout(self._deadline.left())
            return _Stream(ssl_context.wrap_socket(self._sock, server_hostname=server_hostname), self._deadline)
        except TimeoutError as exc:
            self.close()
            raise self._deadline.over() from exc
        except OSError as exc:
            self.close()
            raise httpcore.ConnectError(f"TLS: {exc}") from exc

    def get_extra_info(self, info: str) -> Any:
        return self._sock if info == "ssl_object" and isinstance(self._sock, ssl.SSLSocket) else None
