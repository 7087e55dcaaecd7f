"""Where the data processes of the validators listen: told over the links, kept for one's own data process.

Each core says it of its own to every peer, once its data process is at work and whenever the link comes up; what it
hears makes the list of those from whom blobs may be pulled. A liar harms itself alone: whoever answers at an address
must prove to hold the peer's link key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping

from consensus.messages import DataAddress
from node.data.messages import DataPeer
from node.ports import Peer, PeerAddress

GATHERED_S = 0.05
"""What is heard within such a time is passed on together."""


class Directory:
    def __init__(
        self,
        advertised: DataAddress | None,
        say: Callable[[Peer, DataAddress], None],
        meet: Callable[[tuple[DataPeer, ...]], None],
    ) -> None:
        """`advertised`: the address to be told, where it is another than that of this machine."""
        self._advertised = advertised
        self._say = say
        self._meet = meet
        self._own: DataAddress | None = None
        self._links: Mapping[Peer, PeerAddress] = {}
        self._heard: dict[Peer, DataAddress] = {}
        self._told: tuple[DataPeer, ...] = ()
        self._timer: asyncio.TimerHandle | None = None

    def opened(self, port: int, linked: Iterable[Peer]) -> None:
        """The own data process listens on this port."""
        self._own = self._advertised or DataAddress("", port)
        for peer in linked:
            self._say(peer, self._own)

    def linked(self, peer: Peer) -> None:
        if self._own is not None:
            self._say(peer, self._own)

    def met(self, links: Mapping[Peer, PeerAddress]) -> None:
        """Whom the links reach from here on."""
        self._links = links
        self._heard = {peer: address for peer, address in self._heard.items() if peer in links}
        self._pass_on()

    def heard(self, peer: Peer, address: DataAddress) -> None:
        if peer in self._links and self._heard.get(peer) != address:
            self._heard[peer] = address
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(GATHERED_S, self._pass_on)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self) -> None:
        self.close()
        self._timer = None
        peers = tuple(self._peer(peer, link) for peer, link in sorted(self._links.items()))
        if peers != self._told:
            self._told = peers
            self._meet(peers)

    def _peer(self, peer: Peer, link: PeerAddress) -> DataPeer:
        heard = self._heard.get(peer)
        if heard is None:
            return DataPeer(peer, link.link_key, link.host, 0)
        return DataPeer(peer, link.link_key, heard.host or link.host, heard.port)
