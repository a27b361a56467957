"""Whether the server speaks TLS, and with which certificate.

Browsers give microphone and camera only to pages from localhost or over HTTPS. So on a loopback
address plain HTTP is enough, and anywhere else the server uses TLS: with the certificate that the
settings name, or with a self-signed one that it makes at first start and keeps in the data folder.
"""

import ipaddress
import logging
import os
import secrets
import socket
import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ifaddr
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from agent.config import Config, ServerSettings, data_folder
from agent.errors import ConfigError

logger = logging.getLogger(__name__)

LIFETIME = timedelta(days=825)
"""The longest that Apple's platforms accept from a certificate that the user trusts by hand."""
RENEWAL = timedelta(days=7)
"""A self-signed certificate that ends sooner is made anew at start."""
_CLOCK_SKEW = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ListenPlan:
    """What to listen with: `url` is for people, `warning` is empty or worth a line in the log."""

    url: str
    ssl_context: ssl.SSLContext | None
    warning: str = ""


# ---- what to do -------------------------------------------------------------------------------


def listen_plan(config: Config) -> ListenPlan:
    """Scheme, certificate and warning by the rules above; may make a certificate.

    Raises ConfigError naming the setting when a certificate or key cannot be used.
    """
    context = ensure_certificate(config)
    warning = ""
    if context is None and not is_loopback(config.server.host):
        warning = (
            "plain HTTP beyond this machine: browsers deny microphone and camera to such a page; "
            "leave server.http_only off unless a TLS proxy stands in front"
        )
    elif context is not None and config.server.tls_certificate:
        ends = certificate_end(Path(config.server.tls_certificate))
        if ends < datetime.now(UTC):
            warning = f"server.tls_certificate ended on {ends:%Y-%m-%d}: browsers refuse it"
    return ListenPlan(server_url(config.server), context, warning)


def ensure_certificate(config: Config) -> ssl.SSLContext | None:
    """The context to serve with, made from files that exist afterwards; None is plain HTTP."""
    server = config.server
    if bool(server.tls_certificate) != bool(server.tls_key):
        missing = "tls_key" if server.tls_certificate else "tls_certificate"
        raise ConfigError(f"server.{missing}: certificate and key are needed both, or neither")
    if not uses_tls(server):
        return None
    if server.tls_certificate:
        return given_context(Path(server.tls_certificate), Path(server.tls_key))
    names = names_of_this_machine(server.host)
    bundle = keep_certificate(self_signed_path(config), names, datetime.now(UTC))
    return _context(bundle, bundle)


def uses_tls(server: ServerSettings) -> bool:
    """HTTP is for loopback without a certificate, and for whoever asks for it."""
    if server.http_only:
        return False
    return bool(server.tls_certificate) or not is_loopback(server.host)


def is_loopback(host: str) -> bool:
    """True for localhost, 127.0.0.0/8 and ::1; names are not looked up."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def server_url(server: ServerSettings) -> str:
    """An address that a person can type; for "all addresses" the first one of this machine."""
    host = server.host
    if host in ("0.0.0.0", "::"):
        host = next(iter(sorted(_local_addresses(), key=_reachability)), "127.0.0.1")
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if uses_tls(server) else 'http'}://{shown}:{server.port}"


def self_signed_path(config: Config) -> Path:
    """Where the self-signed certificate and its key are kept, in one file."""
    return data_folder(config) / "tls" / "self-signed.pem"


# ---- the given certificate --------------------------------------------------------------------


def given_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context from two PEM files; ConfigError names the setting that is wrong."""
    leaf = _read_certificate(certificate)
    try:
        private = serialization.load_pem_private_key(_read("tls_key", key), password=None)
    except TypeError as error:
        raise ConfigError(f"server.tls_key: {key} is encrypted; give it without") from error
    except ValueError as error:
        raise ConfigError(f"server.tls_key: {key} holds no private key in PEM form") from error
    if private.public_key() != leaf.public_key():
        raise ConfigError(f"server.tls_key: {key} does not belong to {certificate}")
    return _context(certificate, key)


def certificate_end(certificate: Path) -> datetime:
    """When a certificate ends (UTC); ConfigError when it cannot be read."""
    return _read_certificate(certificate).not_valid_after_utc


def certificate_names(certificate: Path) -> frozenset[str]:
    """The names that a certificate holds for, in small letters; ConfigError as above."""
    found = _read_certificate(certificate)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read("tls_certificate", path))
    except ValueError as error:
        message = f"server.tls_certificate: {path} holds no certificate in PEM form"
        raise ConfigError(message) from error


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.{setting}: {path}: {error.strerror}") from error


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ConfigError(f"server.tls_certificate: {certificate}: {error.reason}") from error
    return context


# ---- the self-signed certificate --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """The names and addresses under which a browser may reach this machine."""

    dns: frozenset[str]
    addresses: frozenset[str]


def names_of_this_machine(host: str) -> CertificateNames:
    """localhost, the host name, every local address, and what the server listens on."""
    dns = {"localhost", socket.gethostname()}
    addresses = {"127.0.0.1", "::1", *_local_addresses()}
    try:
        listening = ipaddress.ip_address(host)
    except ValueError:
        dns.add(host)
    else:
        if not listening.is_unspecified:
            addresses.add(str(listening))
    return CertificateNames(frozenset(filter(str.isascii, dns)), frozenset(addresses))


def keep_certificate(path: Path, names: CertificateNames, now: datetime) -> Path:
    """The file at `path`, made anew unless it still serves for `names`.

    It holds key and certificate, so that both are replaced in one step. A file that is kept is
    closed to everybody but its owner, and so is its folder. Raises ConfigError naming
    server.data_folder when it cannot be written.
    """
    try:
        if _still_serves(path, names, now):
            _close_to_others(path.parent, 0o700)
            _close_to_others(path, 0o600)
        else:
            _write_private(path, _self_signed(names, now))
            logger.info("made a self-signed certificate: %s", path)
    except OSError as error:
        raise ConfigError(f"server.data_folder: {path}: {error.strerror}") from error
    return path


def _still_serves(path: Path, names: CertificateNames, now: datetime) -> bool:
    if not path.exists():
        return False
    content = path.read_bytes()
    try:
        certificate = x509.load_pem_x509_certificate(content)
        key = serialization.load_pem_private_key(content, password=None)
        covered = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, x509.ExtensionNotFound):
        return False
    in_time = certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc - RENEWAL
    addresses = {str(address) for address in covered.get_values_for_type(x509.IPAddress)}
    names_hold = names.dns <= set(covered.get_values_for_type(x509.DNSName))
    is_ours = key.public_key() == certificate.public_key()
    return in_time and names_hold and names.addresses <= addresses and is_ours


def _self_signed(names: CertificateNames, now: datetime) -> bytes:
    """A new P-256 key and its certificate, PEM, in one piece."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "voice-agent")])
    alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in sorted(names.dns)]
    for address in sorted(names.addresses):
        alternatives.append(x509.IPAddress(ipaddress.ip_address(address)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now - _CLOCK_SKEW + LIFETIME)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _close_to_others(path: Path, mode: int) -> None:
    """Set `mode` where anybody but the owner has a right; else leave it: it may be read-only."""
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(mode)
        logger.warning("%s was open to others; now it is its owner's alone", path)


def _write_private(path: Path, content: bytes) -> None:
    """Readable by its owner alone from the first byte on, and never seen half written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(draft, flags, 0o600), "wb") as file:
            file.write(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _local_addresses() -> list[str]:
    """Every address of this machine that can stand in a URL: link-local ones need a zone."""
    found = []
    for adapter in ifaddr.get_adapters():
        for entry in adapter.ips:
            text = entry.ip if isinstance(entry.ip, str) else entry.ip[0]
            address = ipaddress.ip_address(text)
            if not address.is_link_local:
                found.append(str(address))
    return found


def _reachability(address: str) -> tuple[bool, bool]:
    """Sorts what other machines reach before loopback, and IPv4 before IPv6."""
    parsed = ipaddress.ip_address(address)
    return parsed.is_loopback, parsed.version == 6
