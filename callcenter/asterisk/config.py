"""Writes a complete private Asterisk instance, from `asterisk_conf/` and values that have been checked one by one."""

import datetime
import hashlib
import ipaddress
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import jinja2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from callcenter.asterisk.install import MODULES, OPTIONAL_MODULES, AsteriskInstall
from callcenter.asterisk.translate import FAULTS
from callcenter.domain.calls import FALLBACK_LEG

TEMPLATES = Path(__file__).resolve().parents[2] / "asterisk_conf"
REALM = "asterisk"  # Asterisk's default, so that an unknown name is challenged exactly like a known one

#: What the engine reads; Asterisk sends nothing else. List entries of an answer are not touched by the filter.
READ_EVENTS = (
    *("FullyBooted", "Newchannel", "Hangup", "HangupRequest", "DTMFEnd", "UserEvent", "OriginateResponse"),
    "ContactStatus",
    *FAULTS,
)
#: What not even has to be made, dozens a call (manager.conf: disabledevents).
UNMADE_EVENTS = (
    *("VarSet", "RTCPSent", "RTCPReceived", "DTMFBegin", "MusicOnHoldStart", "MusicOnHoldStop"),
    *("Newexten", "NewConnectedLine", "NewCallerid", "NewAccountCode", "DeviceStateChange"),
    *("ExtensionStatus", "QueueMemberStatus", "DialBegin", "DialState", "DialEnd"),
    "SuccessfulAuth",
)

_NUMBER = re.compile(r"[0-9]{1,20}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_AMI_SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}")
_PHONE_SECRET = re.compile(r"[^\x00-\x1f\x7f]{1,128}")  # enters the file only as a digest
_PROMPT = re.compile(r"[a-z0-9_-]+(?:/[a-z0-9_-]+)*")
_HOST_AND_PORT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?:[0-9]{1,5}")
# What means something to Asterisk's readers of files, expressions and arguments, or could end a line.
_UNSAFE_IN_PATH = re.compile(r"[\x00-\x1f\x7f;\[\]{}()<>=,&|\"'$\\#!*?%`^]|^\s|\s$")
_UNSAFE_IN_FILE = re.compile(r"[\x00-\x1f\x7f;\[\]=${}\\]|<(?![0-9]+>)")
_LONGEST_SOCKET_PATH = 107  # sun_path of a Unix socket, unix(7), less its final zero


class ConfigRefused(ValueError):  # noqa: N818  # a refusal, named as the rest of the engine names them
    """A value cannot stand in Asterisk's configuration; the message names the setting and what it may hold."""


class PhoneKind(StrEnum):
    AGENT = "agent"
    SPECIALIST = "specialist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phone:
    """A SIP account: its number is its name, its secret is only kept as a digest."""

    number: str
    secret: str
    kind: PhoneKind

    def __post_init__(self) -> None:
        _check("phones.number", self.number, _NUMBER, "digits, 20 at most")
        _check("phones.secret", self.secret, _PHONE_SECRET, "1 to 128 printable characters", secret=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSettings:
    """What one Asterisk instance needs to know; raises ConfigRefused for a value that may not enter a file."""

    sip_port: int
    ami_port: int
    http_port: int
    https_port: int
    rtp_start: int
    rtp_end: int
    ami_secret: str
    prompts_dir: Path  # <name>.wav, named in PROMPTS without the ending
    recordings_dir: Path  # a relative MixMonitor file lands here
    hotline_numbers: tuple[str, ...]
    phones: tuple[Phone, ...] = ()
    bind_address: str = "127.0.0.1"
    system_name: str = "callcenter"
    trunk_addresses: tuple[str, ...] = ()  # networks whose calls are taken without registration
    trunk_contact: str | None = None  # host:port that calls to outside numbers are sent to
    max_calls: int = 250  # callers at once; more are refused with 503
    fallback_prompt: str = "fallback"  # heard when no engine and no agent answered
    qualify_seconds: int = 5  # how often a phone is asked whether it is still there; 0: never
    tls_certificate: Path | None = None  # PEM; without it one is made for this machine
    tls_private_key: Path | None = None

    def __post_init__(self) -> None:
        try:
            ipaddress.ip_address(self.bind_address)
        except ValueError:
            raise ConfigRefused(f"bind_address {self.bind_address!r} is not an IP address.") from None
        ports = {name: getattr(self, name) for name in ("sip_port", "ami_port", "http_port", "https_port")}
        for name, port in {**ports, "rtp_start": self.rtp_start, "rtp_end": self.rtp_end}.items():
            if not 1024 <= port <= 65535:
                raise ConfigRefused(f"{name} {port} must be between 1024 and 65535.")
        if len(set(ports.values())) != len(ports):
            raise ConfigRefused(
                f"{', '.join(ports)} must be different ports, but are {tuple(ports.values())}."
            )
        if self.rtp_end - self.rtp_start < 3:
            raise ConfigRefused(
                f"rtp_start {self.rtp_start} to rtp_end {self.rtp_end} holds less than two calls."
            )
        if not 1 <= self.max_calls <= 30_000:
            raise ConfigRefused(f"max_calls {self.max_calls} must be between 1 and 30000.")
        if not 0 <= self.qualify_seconds <= 3600:
            raise ConfigRefused(f"qualify_seconds {self.qualify_seconds} must be between 0 and 3600.")
        _check("ami_secret", self.ami_secret, _AMI_SECRET, "16 to 128 letters, digits, - or _", secret=True)
        _check("system_name", self.system_name, _NAME, "letters, digits, - and _")
        _check("fallback_prompt", self.fallback_prompt, _PROMPT, "a prompt's name: a-z 0-9 _ - /")
        for number in self.hotline_numbers:
            _check("hotline_numbers", number, _NUMBER, "digits, 20 at most")
        for network in self.trunk_addresses:
            try:
                everybody = ipaddress.ip_network(network).prefixlen == 0
            except ValueError as error:
                raise ConfigRefused(
                    f"trunk_addresses {network!r} is not an address or network: {error}."
                ) from None
            if everybody:
                raise ConfigRefused(
                    f"trunk_addresses {network!r} is everybody; name the carrier's addresses."
                )
        if self.trunk_contact is not None:
            _check("trunk_contact", self.trunk_contact, _HOST_AND_PORT, "host:port")
        numbers = [phone.number for phone in self.phones]
        if len(set(numbers)) != len(numbers):
            raise ConfigRefused(f"phones has a number twice: {', '.join(numbers)}.")
        if (self.tls_certificate is None) != (self.tls_private_key is None):
            raise ConfigRefused("tls_certificate and tls_private_key must be set together.")


@dataclass(frozen=True, slots=True)
class Instance:
    """A rendered instance, ready for AsteriskProcess."""

    directory: Path
    install: AsteriskInstall
    settings: InstanceSettings
    certificate: Path
    private_key: Path

    @property
    def configuration(self) -> Path:
        return self.directory / "etc" / "asterisk.conf"


@dataclass(frozen=True, slots=True)
class DatabaseRow:
    """One AMI DBPut: Family, Key, Val."""

    family: str
    key: str
    value: dict[str, str]


def browser_account(name: str, password: str) -> tuple[DatabaseRow, ...]:
    """The rows that make a browser's SIP account at run time; `DBDel` of the same families and keys ends it.

    Values are to be sent as JSON. Asterisk refuses a value of more than about 1,000 characters; these have 500.
    """
    _check("name", name, _NAME, "letters, digits, - and _")
    _check("password", password, _PHONE_SECRET, "1 to 128 printable characters", secret=True)
    endpoint = {
        "context": "from-phone",
        "aors": name,
        "auth": name,
        "identify_by": "username",
        "webrtc": "yes",
        "dtls_auto_generate_cert": "yes",
        "disallow": "all",
        "allow": "opus,ulaw,alaw",
        "direct_media": "no",
        "rewrite_contact": "yes",
        "allow_transfer": "no",
        "allow_subscribe": "no",
        "redirect_method": "user",
    }
    auth = {
        "auth_type": "digest",
        "username": name,
        "realm": REALM,
        "password_digest": f"MD5:{_digest(name, password)}",
    }
    # The newest registration wins: a reloaded page or another computer takes the seat over.
    aor = {"max_contacts": "1", "remove_existing": "yes", "qualify_frequency": "10", "qualify_timeout": "3"}
    return (
        DatabaseRow("ps_aor/aor", name, aor),
        DatabaseRow("ps_auth/auth", name, auth),
        DatabaseRow("ps_endpoint/endpoint", name, endpoint),
    )


def render(
    instance: InstanceSettings, install: AsteriskInstall, directory: Path, *, templates: Path = TEMPLATES
) -> Instance:
    """Write the instance below `directory`, readable by this user alone, and return it.

    Safe beside a running Asterisk: it reads its files only when it starts. Raises ConfigRefused.
    """
    directory = directory.resolve()
    _check_paths(instance, install, directory)
    for name in ("etc", "lib/keys", "spool", "run", "log/cel-custom", "data/agi-bin", "data/sounds", "keys"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    instance.recordings_dir.mkdir(parents=True, exist_ok=True)
    links = {
        "data/documentation": install.documentation,
        "data/rest-api": install.rest_api,
        "data/sounds/en": install.sounds,
        "data/sounds/zh": instance.prompts_dir.resolve(),
        "spool/monitor": instance.recordings_dir.resolve(),
    }
    for name, target in links.items():
        _link(directory / name, target)
    certificate, private_key = _certificate(instance, directory / "keys")

    environment = _environment(templates)
    opus = any(install.has_module(name) for name in OPTIONAL_MODULES if name.startswith("codec_opus"))
    values: dict[str, Any] = {
        "instance": instance,
        "install": install,
        "directory": directory,
        "certificate": certificate,
        "private_key": private_key,
        "modules": [*MODULES, *filter(install.has_module, OPTIONAL_MODULES)],
        "read_events": READ_EVENTS,
        "unmade_events": UNMADE_EVENTS,
        "phone_codecs": "alaw,ulaw,opus" if opus else "alaw,ulaw",
        "trunk_codecs": "alaw,ulaw",
        "realm": REALM,
        "fallback_leg": f"leg-{FALLBACK_LEG}",
        "caller_id": lambda phone: f"{phone.number} <{phone.number}>",
        "digest": lambda phone: _digest(phone.number, phone.secret),
        "banned": (),
    }
    written = set()
    for template in sorted(environment.list_templates(extensions=["j2"])):
        path = directory / "etc" / template.removesuffix(".j2")
        _write_private(path, environment.get_template(template).render(values))
        written.add(path)
    for left_over in set((directory / "etc").iterdir()) - written:  # of an older version of this program
        left_over.unlink()
    return Instance(directory, install, instance, certificate, private_key)


def write_ban_list(
    directory: Path, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> None:
    """Write the instance's ban list; Asterisk takes it up when res_pjsip is reloaded. OSError."""
    template = _environment(TEMPLATES).get_template("banned.conf.j2")
    text = template.render(banned=[str(network) for network in networks])
    _write_private(directory / "etc" / "banned.conf", text)


def _environment(templates: Path) -> jinja2.Environment:
    return jinja2.Environment(  # noqa: S701  # these are not HTML; _only_harmless is the escape
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        finalize=_only_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _only_harmless(value: object) -> object:
    """The last net: whatever a template inserts is one plain word or number, unable to start a line or a section."""
    if isinstance(value, str | Path) and _UNSAFE_IN_FILE.search(str(value)):
        raise ConfigRefused(f"{str(value)[:60]!r} cannot be written into Asterisk's configuration.")
    return value


def _check(name: str, value: str, allowed: re.Pattern[str], meaning: str, *, secret: bool = False) -> None:
    if not allowed.fullmatch(value):
        shown = "" if secret else f" {value[:60]!r}"
        raise ConfigRefused(f"{name}{shown} is not allowed; it may hold: {meaning}.")


def _check_paths(instance: InstanceSettings, install: AsteriskInstall, directory: Path) -> None:
    paths = {
        "the instance's directory": directory,
        "prompts_dir": instance.prompts_dir.resolve(),
        "recordings_dir": instance.recordings_dir.resolve(),
        "the directory of Asterisk": install.modules,
        "tls_certificate": instance.tls_certificate,
        "tls_private_key": instance.tls_private_key,
    }
    for name, path in paths.items():
        if path is not None and (found := _UNSAFE_IN_PATH.search(str(path))):
            raise ConfigRefused(
                f"{name} {str(path)!r} holds {found[0]!r}, which Asterisk cannot read. Choose another directory."
            )
    for name, file in (
        ("tls_certificate", instance.tls_certificate),
        ("tls_private_key", instance.tls_private_key),
    ):
        if file is not None and not file.is_file():
            raise ConfigRefused(f"{name} {str(file)!r} does not exist.")
    socket = directory / "run" / "asterisk.ctl"
    if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
        raise ConfigRefused(
            f"{directory} is too long a path for Asterisk's control socket; "
            f"choose one of at most {_LONGEST_SOCKET_PATH - len('/run/asterisk.ctl')} bytes."
        )


def _digest(name: str, password: str) -> str:
    """H(A1) of RFC 2617, clause 3.2.2.2: what an MD5 digest login is checked against."""
    return hashlib.md5(f"{name}:{REALM}:{password}".encode(), usedforsecurity=False).hexdigest()


def _link(link: Path, target: Path) -> None:
    if link.is_symlink():
        if link.readlink() == target:
            return
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)
    link.symlink_to(target, target_is_directory=True)


def _write_private(path: Path, text: str | bytes) -> None:
    """Write whole and readable by this user alone, or not at all."""
    data = text.encode() if isinstance(text, str) else text
    new = path.with_name(f".{path.name}.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    new.chmod(0o600)
    new.replace(path)


def _certificate(instance: InstanceSettings, keys: Path) -> tuple[Path, Path]:
    """The site's own certificate, or one made here: kept between starts, made again a month before it ends."""
    if instance.tls_certificate is not None and instance.tls_private_key is not None:
        return instance.tls_certificate.resolve(), instance.tls_private_key.resolve()
    certificate, private_key = keys / "callcenter.crt", keys / "callcenter.key"
    now = datetime.datetime.now(datetime.UTC)
    names = _certificate_names(instance)
    if certificate.is_file() and private_key.is_file():
        old = x509.load_pem_x509_certificate(certificate.read_bytes())
        old_names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if old.not_valid_after_utc - now > datetime.timedelta(days=30) and list(old_names) == names:
            return certificate, private_key
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "callcenter")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=397))  # browsers refuse longer ones
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(
        private_key,
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
    _write_private(certificate, made.public_bytes(serialization.Encoding.PEM))
    return certificate, private_key


def _certificate_names(instance: InstanceSettings) -> list[x509.GeneralName]:
    addresses = [ipaddress.ip_address("127.0.0.1")]
    bound = ipaddress.ip_address(instance.bind_address)
    if not bound.is_unspecified and bound not in addresses:
        addresses.append(bound)
    return [x509.DNSName("localhost"), *map(x509.IPAddress, addresses)]
