"""Endpoints by flag, file and name."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from parure.batch.addresses import endpoint_urls
from parure.errors import InputError


def test_flags_and_file_together_name_each_endpoint_once(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("# ours\ngrpc://a:1\n\n  http://b:2  # the slow one\ngrpc://c:3/\n")
    assert endpoint_urls(["grpc://c:3"], tmp_path / "urls") == ["grpc://c:3", "grpc://a:1", "http://b:2"]


def test_a_dns_name_is_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def addresses(host: str, port: int, **kind: Any) -> Any:
        assert (host, port) == ("fleet", 8001)
        stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*stream, ("10.0.0.2", port)), (*stream, ("10.0.0.1", port)), (*stream, ("fd00::1", port, 0, 0))]

    monkeypatch.setattr("socket.getaddrinfo", addresses)
    expected = ["grpc://10.0.0.1:8001", "grpc://10.0.0.2:8001", "grpc://[fd00::1]:8001"]
    assert endpoint_urls(["dns+grpc://fleet"], None) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "no endpoint is given"),
        (["a:1"], "is not the URL of a server"),
        (["dns+ftp://a"], "is not the name of servers"),
        (["dns+grpc://name.invalid"], "no endpoint is given"),
    ],
)
def test_what_names_no_server_is_an_input_error(given: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        endpoint_urls(given, None)


def test_a_file_that_is_not_there_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        endpoint_urls([], tmp_path / "none")
