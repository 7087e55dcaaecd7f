"""The configuration: read once, with every complaint at once, each saying what would be accepted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cli.templates import node_toml
from node.config import SETTINGS, ConfigError, HostPort, load_config, read_config

BASE = Path("/srv/quorate")
LEAST: dict[str, dict[str, object]] = {
    "node": {"data_dir": "data", "genesis": "genesis.bin", "keys": "keys"},
    "links": {"listen": "0.0.0.0:7600"},
}


def complaints(content: dict[str, dict[str, object]], environment: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        read_config(content, BASE, environment or {})
    return caught.value.sentences


def changed(**sections: dict[str, object]) -> dict[str, dict[str, object]]:
    return {name: {**LEAST.get(name, {}), **sections.get(name, {})} for name in LEAST.keys() | sections.keys()}


def test_the_least_configuration_has_the_documented_defaults() -> None:
    config = read_config(LEAST, BASE, {})
    assert config.node.data_dir == BASE / "data"
    assert config.node.passphrase == "prompt"
    assert config.rpc.listen == HostPort("127.0.0.1", 7680)
    assert config.rpc.cors == ()
    assert config.log.format == "json"
    assert config.admin_socket == BASE / "data" / "admin.sock"


def test_the_rpc_listens_on_loopback_unless_told_otherwise() -> None:
    assert read_config(LEAST, BASE, {}).rpc.listen.host == "127.0.0.1"


def test_every_setting_of_the_template_is_read_back_as_its_default() -> None:
    import tomllib

    given = {(section, name): value for section, values in LEAST.items() for name, value in values.items()}
    plain = node_toml(given, explain=True)
    assert read_config(tomllib.loads(plain), BASE, {}) == read_config(LEAST, BASE, {})
    unset = re.sub(r'(?m)^# (\w+ = (?!""$))', r"\1", plain)
    assert unset != plain
    assert read_config(tomllib.loads(unset), BASE, {}) == read_config(LEAST, BASE, {})


def test_relative_paths_start_at_the_directory_of_the_file(tmp_path: Path) -> None:
    place = tmp_path / "node.toml"
    given = {(section, name): value for section, values in LEAST.items() for name, value in values.items()}
    place.write_text(node_toml(given))
    assert load_config(place, {}).node.genesis == tmp_path / "genesis.bin"


def test_all_complaints_come_at_once() -> None:
    found = complaints({"node": {"data_dir": 5}, "links": {"listen": "nowhere"}, "rpc": {"listen": "x:0"}})
    assert len(found) == 5
    assert any("genesis is missing" in each for each in found)
    assert any("'nowhere'" in each and "host:port" in each for each in found)


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    assert complaints(changed(node={"data_dri": "x"})) == ("[node] data_dri is not a setting; did you mean data_dir?",)


def test_an_unknown_section_is_refused() -> None:
    assert complaints(changed(link={"listen": "x"})) == ("[link] is not a section; did you mean links?",)


def test_the_environment_overrides_the_file() -> None:
    environment = {
        "QUORATE_NODE__DATA_DIR": "/elsewhere",
        "QUORATE_RPC__LISTEN": "[::1]:9000",
        "QUORATE_LIMITS__DISK_RESERVE_BYTES": "1000",
        "QUORATE_RPC__CORS": '["https://board.example"]',
        "QUORATE_LINKS__ADDRESSES": '{ "north-1" = "10.0.0.1:7600" }',
        "QUORATE_CONFIG": "node.toml",
        "PATH": "/bin",
    }
    config = read_config(LEAST, BASE, environment)
    assert config.node.data_dir == Path("/elsewhere")
    assert config.rpc.listen == HostPort("::1", 9000)
    assert str(config.rpc.listen) == "[::1]:9000"
    assert config.limits.disk_reserve_bytes == 1000
    assert config.rpc.cors == ("https://board.example",)
    assert config.links.addresses == {"north-1": HostPort("10.0.0.1", 7600)}


def test_a_misspelt_variable_is_refused_and_not_ignored() -> None:
    assert complaints(LEAST, {"QUORATE_NODE__DATADIR": "x"}) == (
        "The environment variable QUORATE_NODE__DATADIR names no setting; unset it or mend its name.",
    )


def test_a_complaint_about_the_environment_names_the_variable() -> None:
    assert complaints(LEAST, {"QUORATE_LOG__LEVEL": "loud"})[0].startswith("QUORATE_LOG__LEVEL is 'loud'")


@pytest.mark.parametrize("listen", ["", "7600", "host", "host:", ":7600", "host:70000", "host:-1", "::1:7600", "[h]:1"])
def test_an_address_that_is_none_is_refused(listen: str) -> None:
    assert "listen" in complaints(changed(links={"listen": listen}))[0]


@pytest.mark.parametrize("source", ["", "hunter2", "file:", "credential:", "prompt:"])
def test_a_passphrase_itself_is_no_source_of_one(source: str) -> None:
    assert "passphrase" in complaints(changed(node={"passphrase": source}))[0]


def test_the_file_of_a_passphrase_starts_at_the_same_directory() -> None:
    config = read_config(changed(node={"passphrase": "file:secret"}), BASE, {})
    assert config.node.passphrase == f"file:{BASE / 'secret'}"


def test_true_is_not_a_number() -> None:
    assert complaints(changed(limits={"threads": True}))


def test_half_of_a_tls_pair_is_refused() -> None:
    assert "belong together" in complaints(changed(rpc={"tls_cert": "cert.pem"}))[0]


def test_one_port_for_links_and_clients_is_refused() -> None:
    assert "port of its own" in complaints(changed(rpc={"listen": "0.0.0.0:7600"}))[0]


def test_the_data_process_listens_one_port_above_the_others_unless_told_otherwise() -> None:
    config = read_config(LEAST, BASE, {})
    assert config.bulk_listen == HostPort("0.0.0.0", 7601)
    assert config.door_listen == HostPort("127.0.0.1", 7681)
    told = read_config(changed(data={"listen": "10.0.0.1:9001", "door": "[::1]:9002"}), BASE, {})
    assert told.bulk_listen == HostPort("10.0.0.1", 9001)
    assert told.door_listen == HostPort("::1", 9002)


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"listen": "0.0.0.0:7600"}},
        {"data": {"door": "127.0.0.1:7680"}},
        {"data": {"listen": "127.0.0.1:7681"}},
        {"links": {"listen": "0.0.0.0:65535"}},
    ],
)
def test_two_listeners_of_one_node_on_one_port_are_refused(sections: dict[str, dict[str, object]]) -> None:
    assert "port of its own" in complaints(changed(**sections))[0]


@pytest.mark.parametrize("gateways", ["https://one.example", ["one.example"], ["ftp://one.example"], ["https://"]])
def test_gateways_are_a_list_of_urls(gateways: object) -> None:
    assert "URL" in complaints(changed(data={"gateways": gateways}))[0]


def test_a_data_directory_too_deep_for_the_admin_socket_is_refused() -> None:
    assert "admin socket" in complaints(changed(node={"data_dir": "x" * 120}))[0]


def test_a_missing_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        load_config(tmp_path / "none.toml", {})


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("[node")
    with pytest.raises(ConfigError, match=r"node\.toml cannot be read"):
        load_config(tmp_path / "node.toml", {})


def test_the_operators_page_lists_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    missing = [
        f"[{section}] {name}" for section, settings in SETTINGS.items() for name in settings if f"`{name}`" not in page
    ]
    assert not missing
