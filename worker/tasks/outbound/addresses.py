"""Which addresses a call to the outside may reach: public ones, whatever form they come in."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address

#: Says why an address may not be reached, or None when it may.
Judge = Callable[[Address], str | None]

#: IPv4 that is not the public internet, by the IANA special-purpose registry. It is written out, since what the standard
#: library counts as global changes between the releases of Python.
_REFUSED_4 = {
    IPv4Network(net): why
    for net, why in {
        "0.0.0.0/8": "unspecified",
        "10.0.0.0/8": "private",
        "100.64.0.0/10": "shared by carriers (CGNAT)",
        "127.0.0.0/8": "loopback",
        "169.254.0.0/16": "link-local, where clouds keep their metadata",
        "172.16.0.0/12": "private",
        "192.0.0.0/24": "reserved",
        "192.0.2.0/24": "for documentation",
        "192.31.196.0/24": "reserved",
        "192.52.193.0/24": "reserved",
        "192.88.99.0/24": "a 6to4 relay",
        "192.168.0.0/16": "private",
        "192.175.48.0/24": "reserved",
        "198.18.0.0/15": "for benchmarks",
        "198.51.100.0/24": "for documentation",
        "203.0.113.0/24": "for documentation",
        "224.0.0.0/4": "multicast",
        "240.0.0.0/4": "reserved",
        # Looks public, but is the host of every virtual machine on Azure.
        "168.63.129.16/32": "a cloud's own host",
    }.items()
}

#: Only this part of IPv6 is handed out to the public; everything else is refused without a list.
_GLOBAL_6 = IPv6Network("2000::/3")
_REFUSED_6 = {
    IPv6Network(net): why
    for net, why in {
        "2001::/23": "reserved, Teredo tunnels among it",
        "2001:db8::/32": "for documentation",
        "2002::/16": "a 6to4 tunnel",
        "3fff::/20": "for documentation",
        # Outside of 2000::/3; named here for the message alone.
        "::1/128": "loopback",
        "::/128": "unspecified",
        "fc00::/7": "private (unique local)",
        "fe80::/10": "link-local",
        "ff00::/8": "multicast",
    }.items()
}
#: How an IPv6-only network reaches IPv4 (RFC 6052): judged by the IPv4 address in its last four bytes.
_NAT64 = IPv6Network("64:ff9b::/96")


def public_only(address: Address) -> str | None:
    """Say why an address is not a public one, or None when it is.

    An IPv4 address inside an IPv6 one (mapped, or NAT64) is judged as itself; the other ways to carry one (IPv4-compatible,
    6to4, Teredo, local NAT64) are refused as a whole: no public service lives there.
    """
    if isinstance(address, IPv4Address):
        return next((why for net, why in _REFUSED_4.items() if address in net), None)
    if address.ipv4_mapped is not None:
        return public_only(address.ipv4_mapped)
    if address in _NAT64:
        return public_only(IPv4Address(int(address) & 0xFFFF_FFFF))
    why = next((why for net, why in _REFUSED_6.items() if address in net), None)
    return why or (None if address in _GLOBAL_6 else "reserved")


def anyone(address: Address) -> str | None:
    """Refuse no address: for a deployment that calls its own services on purpose."""
    return None
