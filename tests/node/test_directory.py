"""Where the data processes of others listen, as it is heard over the links."""

from __future__ import annotations

import asyncio

from consensus.messages import DataAddress
from node.data.messages import DataPeer
from node.directory import Directory
from node.ports import Peer, PeerAddress

A, B = b"\x01" * 33, b"\x02" * 33
LINKS = {A: PeerAddress(b"\x0a" * 33, "a.example", 7000), B: PeerAddress(b"\x0b" * 33, "b.example", 7000)}


class Heard:
    def __init__(self, advertised: DataAddress | None = None) -> None:
        self.said: list[tuple[Peer, DataAddress]] = []
        self.met: list[tuple[DataPeer, ...]] = []
        self.directory = Directory(
            advertised, lambda peer, address: self.said.append((peer, address)), lambda peers: self.met.append(peers)
        )


async def test_whoever_is_linked_is_told_where_the_data_process_listens_once_it_does() -> None:
    heard = Heard()
    heard.directory.linked(A)
    assert heard.said == []
    heard.directory.opened(7001, [A])
    heard.directory.linked(B)
    assert heard.said == [(A, DataAddress("", 7001)), (B, DataAddress("", 7001))]


async def test_an_advertised_address_is_told_instead_of_the_own_one() -> None:
    elsewhere = DataAddress("proxy.example", 443)
    heard = Heard(elsewhere)
    heard.directory.opened(7001, [A])
    assert heard.said == [(A, elsewhere)]


async def test_peers_are_reached_where_they_say_and_by_default_where_their_links_are() -> None:
    heard = Heard()
    heard.directory.met(LINKS)
    assert [(peer.host, peer.port) for peer in heard.met[-1]] == [("a.example", 0), ("b.example", 0)]
    heard.directory.heard(A, DataAddress("", 7001))
    heard.directory.heard(B, DataAddress("proxy.example", 443))
    heard.directory.heard(B, DataAddress("proxy.example", 443))
    await asyncio.sleep(0.2)
    assert len(heard.met) == 2
    assert heard.met[-1] == (
        DataPeer(A, LINKS[A].link_key, "a.example", 7001),
        DataPeer(B, LINKS[B].link_key, "proxy.example", 443),
    )
    heard.directory.met({B: LINKS[B]})
    assert [peer.key for peer in heard.met[-1]] == [B] and heard.met[-1][0].port == 443


async def test_a_stranger_is_not_listed_whatever_it_says() -> None:
    heard = Heard()
    heard.directory.met({A: LINKS[A]})
    heard.directory.heard(B, DataAddress("b.example", 7001))
    await asyncio.sleep(0.2)
    assert len(heard.met) == 1
