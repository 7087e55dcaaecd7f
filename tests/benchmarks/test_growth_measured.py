"""Bytes on links, as `ss` tells them."""

from __future__ import annotations

from benchmarks.growth_measured import received_by_links, table

TOLD = """\
ESTAB 0      0      127.0.0.1:20001 127.0.0.1:39834 users:(("python3",pid=31,fd=5)) bbr bytes_sent:9 bytes_received:100 segs_out:2
ESTAB 12     3      127.0.0.1:39836 127.0.0.1:20002 users:(("python3",pid=31,fd=6)) bbr bytes_acked:7 bytes_received:20 segs_out:2
ESTAB 0      0      127.0.0.1:20003 127.0.0.1:39838 users:(("python3",pid=31,fd=7)) bbr bytes_received:5000 segs_out:2
ESTAB 0      0      127.0.0.1:39834 127.0.0.1:20001 users:(("python3",pid=32,fd=5)) bbr bytes_received:9 segs_out:2
ESTAB 0      0      127.0.0.1:20002 127.0.0.1:39836 users:(("python3",pid=33,fd=5)) bbr cwnd:10 segs_out:2
"""  # noqa: E501


def test_only_connections_of_links_count_dialled_or_accepted() -> None:
    assert received_by_links(TOLD, {20001, 20002}) == {31: 120, 32: 9}


def test_a_table_says_how_often_an_update_comes_in() -> None:
    row = dict.fromkeys(("cpu_us", "core_us", "data_us", "signature_us"), 1.0)
    found = [{**row, "validators": 4, "link_bytes": 2391, "update_bytes": 1594}]
    assert table(found).splitlines()[-1] == "| 4 | 1.0 | 1.0 | 1.0 | 1.0 | 2391 | 1.50 |"
