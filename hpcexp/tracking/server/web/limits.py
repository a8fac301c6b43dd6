"""How often a password may be guessed: token buckets in memory, of a bounded number."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from hashlib import blake2b

_MOST = 20_000
"""Buckets of a kind. A guess costs 50 ms of hashing, so to push one out takes longer than to fill it again."""


_LONGEST = 64
_Pair = tuple[bytes, str]
"""Digest of a user's name, and a network."""


class Buckets:
    """A bucket of `size` tokens for each key, full at first, which gains a token every `refill_s` seconds.

    The key that was used least recently is forgotten when there are more than `most`.
    """

    def __init__(
        self, size: int, refill_s: float, clock: Callable[[], float] = time.monotonic, most: int = _MOST
    ) -> None:
        self._size, self._refill_s, self._clock, self._most = size, refill_s, clock, most
        self._found: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """Key → tokens, and when they were counted."""

    def wait_s(self, key: Hashable) -> float:
        """Seconds until the key has a token; 0 where it has one."""
        return max(0.0, (1.0 - self._tokens(key)) * self._refill_s)

    def is_full(self, key: Hashable) -> bool:
        """Whether nothing was taken lately."""
        return self._tokens(key) >= self._size

    def take(self, key: Hashable) -> None:
        """Take a token, where there is none as a debt, of at most another `size`."""
        self._put(key, max(self._tokens(key) - 1.0, -float(self._size)))

    def give_back(self, key: Hashable) -> None:
        """Put back what was taken."""
        self._put(key, self._tokens(key) + 1.0)

    def __len__(self) -> int:
        return len(self._found)

    def _tokens(self, key: Hashable) -> float:
        tokens, counted = self._found.get(key, (float(self._size), 0.0))
        return min(float(self._size), tokens + (self._clock() - counted) / self._refill_s)

    def _put(self, key: Hashable, tokens: float) -> None:
        if tokens >= self._size:
            self._found.pop(key, None)
            return
        self._found[key] = tokens, self._clock()
        self._found.move_to_end(key)
        while len(self._found) > self._most:
            self._found.popitem(last=False)


class Attempts:
    """Whether a user's password may be tried from an address.

    Failures are counted for each user and address, for each user, and for each address. None of the counts lets one
    attacker lock everybody out:

    - Where a user logged in before, only failures of that user at that address count.
    - At an address with too many failures, as many users behind one proxy share it, each user has one attempt, and
      another one a while after it failed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pairs = Buckets(5, 20.0, clock)
        self._users = Buckets(20, 30.0, clock)
        self._addresses = Buckets(30, 5.0, clock)
        self._known: OrderedDict[_Pair, None] = OrderedDict()
        """Users and where they logged in from, the most recent last."""

    def begin(self, user: str, address: str) -> int:
        """0, and the attempt counts as failed until `succeeded`; otherwise the seconds to wait, and nothing counts."""
        pair = _pair(user, address)
        waits = [self._pairs.wait_s(pair)]
        if pair not in self._known:
            waits.append(self._users.wait_s(pair[0]))
            if not self._pairs.is_full(pair):
                waits.append(self._addresses.wait_s(pair[1]))
        if max(waits) > 0:
            return math.ceil(max(waits))
        for buckets, key in self._buckets(pair):
            buckets.take(key)
        return 0

    def succeeded(self, user: str, address: str) -> None:
        """The attempt that was begun was no failure."""
        pair = _pair(user, address)
        for buckets, key in self._buckets(pair):
            buckets.give_back(key)
        self._known[pair] = None
        self._known.move_to_end(pair)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)

    def _buckets(self, pair: _Pair) -> list[tuple[Buckets, Hashable]]:
        return [(self._pairs, pair), (self._users, pair[0]), (self._addresses, pair[1])]


def _pair(user: str, address: str) -> _Pair:
    # Names are as long as whoever guesses wants; what is kept of them is not.
    return blake2b(user.encode(errors="surrogatepass"), digest_size=16).digest(), network(address)


def network(address: str) -> str:
    """What counts as one address: of IPv6 the network that a customer gets as a whole."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:_LONGEST]
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((ip, 64), strict=False))
