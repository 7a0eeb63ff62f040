import ssl
from pathlib import Path

import pytest

from easq.errors import ConfigError
from easq.net.http import Transport
from easq.net.settings import NetworkSettings
from easq.net.tls import tls_context
from easq.protocol.operations import Request
from tests.client.servers import secured


def test_certificates_and_names_are_checked_from_tls_1_2_on() -> None:
    context = tls_context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.get_ca_certs()


def test_a_private_ca_that_says_no_more_than_that_it_is_one_is_trusted(private_ca: tuple[Path, Path]) -> None:
    """Without key usage and key identifiers, as many a company has it; Python 3.13 refuses it by default."""
    ca, server_certificate = private_ca
    assert not tls_context().verify_flags & ssl.VERIFY_X509_STRICT
    with (
        secured(server_certificate) as server,
        Transport(NetworkSettings(cacert=str(ca), environ={})) as transport,
    ):
        url = server.url.replace("http", "https", 1)
        assert transport.exchange(url, Request("GET"), None).body == b"safe"


def test_a_given_ca_is_the_only_one(certificate: Path) -> None:
    assert len(tls_context(cacert=str(certificate)).get_ca_certs()) == 1


def test_insecure_takes_any_certificate() -> None:
    context = tls_context(insecure=True)
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname


def test_an_invalid_ca_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing\n")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(ConfigError, match=name):
            tls_context(cacert=str(tmp_path / name))


def test_a_key_log_that_cannot_be_written_is_not_taken_for_the_ca_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "missing" / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(log))
    with pytest.raises(ConfigError) as caught:
        tls_context()
    assert caught.value.message == f"SSLKEYLOGFILE {log} cannot be written: No such file or directory"
