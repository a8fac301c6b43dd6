"""Where the machines of a job find each other: addresses of `launch.rdzv` and of this machine."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from typing import Any

from hpcexp.errors import RunError
from hpcexp.plan import Plan

_SIOCGIFADDR = 0x8915
"""The request of netdevice(7) for an interface's address."""


def rdzv_of(plan: Plan) -> str:
    """`launch.rdzv` of a job on several machines."""
    return str(plan.settings.launch.arguments["rdzv"])


def own_address(rdzv: str) -> str:
    """Address of this machine as the host of `launch.rdzv` sees it; RunError where there is no way to it."""
    kind, place = _places(rdzv)[0]
    try:
        with socket.socket(kind, socket.SOCK_DGRAM) as s:
            s.connect(place)  # sends nothing: it asks the kernel for the way
            address: str = s.getsockname()[0]
            return address
    except OSError as e:
        raise _no_way(rdzv, e) from e


def is_here(rdzv: str) -> bool:
    """Whether this machine is the host of `launch.rdzv`: only one's own addresses can be bound."""
    for kind, place in _places(rdzv):
        with socket.socket(kind, socket.SOCK_DGRAM) as s, contextlib.suppress(OSError):
            s.bind((place[0], 0, *place[2:]))
            return True
    return False


def _places(rdzv: str) -> list[tuple[socket.AddressFamily, Any]]:
    """Family and address of the host, in the order in which to try them."""
    try:
        found = socket.getaddrinfo(*host_and_port(rdzv), type=socket.SOCK_DGRAM)
    except OSError as e:
        raise _no_way(rdzv, e) from e
    return [(kind, place) for kind, _, _, _, place in found]


def host_and_port(rdzv: str) -> tuple[str, int]:
    """The two parts of `launch.rdzv`."""
    host, _, port = rdzv.rpartition(":")
    return host.strip("[]"), int(port)


def _no_way(rdzv: str, error: OSError) -> RunError:
    return RunError(
        f"launch.rdzv={rdzv}: {socket.gethostname()} finds no way to that host ({error.strerror}).\n"
        "Fix: launch.rdzv=HOST:PORT with the name or address of one of the machines."
    )


def interface_of(address: str) -> str | None:
    """The network interface with this IPv4 address; None where it is not found."""
    for _, name in socket.if_nameindex():
        with socket.socket() as s, contextlib.suppress(OSError):
            # netdevice(7): struct ifreq in and out; the address follows 20 bytes of name, family and port.
            reply = fcntl.ioctl(s, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None
