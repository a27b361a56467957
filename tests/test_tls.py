"""When the server speaks TLS, and the certificate that it makes for itself."""

import asyncio
import ipaddress
import logging
import os
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent import tls
from agent.config import Config, load_config
from agent.errors import ConfigError
from agent.tls import CertificateNames, keep_certificate

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAMES = CertificateNames(frozenset({"localhost", "kiosk"}), frozenset({"127.0.0.1", "::1"}))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tmp_path / "tls" / "self-signed.pem"


def config_of(tmp_path: Path, *overrides: str) -> Config:
    return load_config(None, {}, [f"server.data_folder={tmp_path}", *overrides])


def certificate_and_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A pair of files as an administrator would have them."""
    made = keep_certificate(folder / name, NAMES, datetime.now(UTC)).read_text()
    key, marker, certificate = made.partition("-----BEGIN CERTIFICATE-----")
    key_file, certificate_file = folder / f"{name}.key", folder / f"{name}.crt"
    key_file.write_text(key)
    certificate_file.write_text(marker + certificate)
    return certificate_file, key_file


def use(certificate: Path | str, key: Path | str) -> list[str]:
    return [f"server.tls_certificate={certificate}", f"server.tls_key={key}"]


# ---- the rule ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_tls(tmp_path: Path, host: str) -> None:
    plan = tls.listen_plan(config_of(tmp_path, f"server.host={host}"))
    shown = f"[{host}]" if ":" in host else host
    assert (plan.url, plan.ssl_context, plan.warning) == (f"http://{shown}:8006", None, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "kiosk.example"])
def test_any_other_address_gets_tls_with_a_certificate_of_its_own(
    tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tmp_path, f"server.host={host}", "server.port=443")
    with caplog.at_level(logging.INFO):
        plan = tls.listen_plan(config)
    assert isinstance(plan.ssl_context, ssl.SSLContext)
    assert plan.ssl_context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert plan.url.startswith("https://")
    assert plan.url.endswith(":443")
    assert "0.0.0.0" not in plan.url
    assert "[::]" not in plan.url
    assert plan.warning == ""
    assert str(tls.self_signed_path(config)) in caplog.text


def test_http_only_refuses_tls_and_warns(tmp_path: Path) -> None:
    config = config_of(tmp_path, "server.host=192.0.2.7", "server.http_only=true")
    plan = tls.listen_plan(config)
    assert plan.ssl_context is None
    assert plan.url == "http://192.0.2.7:8006"
    assert "microphone and camera" in plan.warning


def test_a_given_certificate_is_used_on_loopback_too(tmp_path: Path) -> None:
    plan = tls.listen_plan(config_of(tmp_path, *use(*certificate_and_key(tmp_path, "given"))))
    assert plan.ssl_context is not None
    assert plan.url == "https://127.0.0.1:8006"
    assert plan.warning == ""


def test_a_given_certificate_that_ended_is_served_with_a_warning(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - tls.LIFETIME - timedelta(days=3)
    old = keep_certificate(tmp_path / "old.pem", NAMES, long_ago)
    plan = tls.listen_plan(config_of(tmp_path, *use(old, old)))
    assert "server.tls_certificate ended on" in plan.warning


# ---- a given certificate that cannot be used --------------------------------------------------


def test_certificate_and_key_go_together(tmp_path: Path) -> None:
    certificate, key = certificate_and_key(tmp_path, "given")
    for override, missing in (
        (f"server.tls_certificate={certificate}", "server.tls_key"),
        (f"server.tls_key={key}", "server.tls_certificate"),
    ):
        with pytest.raises(ConfigError, match=f"^{missing}: "):
            tls.listen_plan(config_of(tmp_path, override))


def test_unusable_files_are_named_by_their_setting(tmp_path: Path) -> None:
    certificate, key = certificate_and_key(tmp_path, "one")
    _, other_key = certificate_and_key(tmp_path, "two")
    locked = tmp_path / "locked.key"
    private = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hush"),
        )
    )
    for pair, complaint in (
        (use(tmp_path / "none", key), "server.tls_certificate: .*No such file"),
        (use(certificate, tmp_path / "none"), "server.tls_key: .*No such file"),
        (use(key, key), "server.tls_certificate: .*no certificate"),
        (use(certificate, certificate), "server.tls_key: .*no private key"),
        (use(certificate, other_key), "server.tls_key: .*does not belong"),
        (use(certificate, locked), "server.tls_key: .*encrypted"),
    ):
        with pytest.raises(ConfigError, match=f"^{complaint}"):
            tls.listen_plan(config_of(tmp_path, *pair))


# ---- the self-signed certificate --------------------------------------------------------------


def test_the_key_is_private_from_its_first_byte(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    open_file = os.fdopen

    def watch(descriptor: int, mode: str) -> object:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        assert os.fstat(descriptor).st_size == 0
        return open_file(descriptor, mode)

    monkeypatch.setattr(os, "fdopen", watch)
    before = os.umask(0)
    try:
        keep_certificate(bundle, NAMES, NOW)
    finally:
        os.umask(before)
    assert modes == [0o600]
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert stat.S_IMODE(bundle.parent.stat().st_mode) == 0o700
    assert list(bundle.parent.iterdir()) == [bundle]


def test_it_names_the_machine_and_lasts_as_long_as_devices_accept(bundle: Path) -> None:
    keep_certificate(bundle, NAMES, NOW)
    certificate = x509.load_pem_x509_certificate(bundle.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == NAMES.dns
    addresses = {str(address) for address in names.get_values_for_type(x509.IPAddress)}
    assert addresses == NAMES.addresses
    lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lifetime <= timedelta(days=825)
    assert certificate.not_valid_before_utc < NOW
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_it_is_kept_while_it_serves(bundle: Path) -> None:
    first = keep_certificate(bundle, NAMES, NOW).read_bytes()
    fewer = CertificateNames(frozenset({"localhost"}), frozenset({"::1"}))
    assert keep_certificate(bundle, fewer, NOW + timedelta(days=800)).read_bytes() == first


def test_a_kept_key_that_others_could_read_is_closed_to_them(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = keep_certificate(bundle, NAMES, NOW).read_bytes()
    keep_certificate(bundle, NAMES, NOW)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    bundle.chmod(0o644)
    bundle.parent.chmod(0o755)
    assert keep_certificate(bundle, NAMES, NOW).read_bytes() == first
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert stat.S_IMODE(bundle.parent.stat().st_mode) == 0o700
    assert f"{bundle} was open to others" in caplog.text


@pytest.mark.parametrize(
    ("names", "later"),
    [
        (NAMES, tls.LIFETIME - timedelta(days=7)),
        (NAMES, tls.LIFETIME + timedelta(days=7)),
        (NAMES, timedelta(days=-30)),
        (CertificateNames(NAMES.dns | {"renamed"}, NAMES.addresses), timedelta()),
        (CertificateNames(NAMES.dns, NAMES.addresses | {"192.0.2.9"}), timedelta()),
    ],
)
def test_it_is_made_anew_when_it_no_longer_serves(
    bundle: Path, names: CertificateNames, later: timedelta
) -> None:
    first = keep_certificate(bundle, NAMES, NOW).read_bytes()
    second = keep_certificate(bundle, names, NOW + later).read_bytes()
    assert second != first
    assert keep_certificate(bundle, names, NOW + later).read_bytes() == second


@pytest.mark.parametrize("damage", [b"", b"not a certificate"])
def test_a_damaged_file_is_replaced(bundle: Path, damage: bytes) -> None:
    keep_certificate(bundle, NAMES, NOW)
    bundle.write_bytes(damage)
    x509.load_pem_x509_certificate(keep_certificate(bundle, NAMES, NOW).read_bytes())


def test_a_key_of_another_certificate_is_replaced(tmp_path: Path) -> None:
    certificate, _ = certificate_and_key(tmp_path, "one")
    _, key = certificate_and_key(tmp_path, "two")
    mixed = tmp_path / "mixed.pem"
    mixed.write_text(key.read_text() + certificate.read_text())
    keep_certificate(mixed, NAMES, datetime.now(UTC))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(mixed)


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^server\.data_folder: "):
        keep_certificate(tmp_path / "file" / "tls" / "self-signed.pem", NAMES, NOW)


def test_the_machine_s_names_hold_every_way_to_reach_it() -> None:
    for host in ("0.0.0.0", "198.51.100.3", "kiosk.example"):
        names = tls.names_of_this_machine(host)
        assert "localhost" in names.dns
        assert {"127.0.0.1", "::1"} <= names.addresses
        assert "0.0.0.0" not in names.addresses
        assert not any(ipaddress.ip_address(text).is_link_local for text in names.addresses)
    assert "kiosk.example" in names.dns
    assert "198.51.100.3" in tls.names_of_this_machine("198.51.100.3").addresses


async def test_a_client_that_trusts_the_certificate_gets_through(
    tmp_path: Path, nothing_left_behind: None
) -> None:
    config = config_of(tmp_path, "server.host=0.0.0.0")
    plan = tls.listen_plan(config)

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=plan.ssl_context)
    port = server.sockets[0].getsockname()[1]
    trust = ssl.create_default_context(cafile=str(tls.self_signed_path(config)))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=trust, server_hostname="localhost"
    )
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
