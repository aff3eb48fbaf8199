"""SIP messages as plain values: parse, build, digest answers and the little SDP a telephone needs; no sockets, no clock.

Rules are those of RFC 3261 (messages), RFC 7616 and RFC 2617 (digest), RFC 4566 and RFC 3264 (SDP).  `parse` is
linear in the size of its input and raises nothing but `Malformed`, whatever the bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import ip_address

from callcenter.phone.g711 import Codec

MAX_HEADER_LINES = 200
MAX_HEAD_BYTES = 32_768
BRANCH_COOKIE = "z9hG4bK"  # RFC 3261 8.1.1.7

REASONS = {
    100: "Trying", 180: "Ringing", 183: "Session Progress", 200: "OK", 400: "Bad Request", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 416: "Unsupported URI Scheme", 420: "Bad Extension",
    422: "Session Interval Too Small", 480: "Temporarily Unavailable", 481: "Call/Transaction Does Not Exist",
    486: "Busy Here", 487: "Request Terminated", 488: "Not Acceptable Here", 491: "Request Pending",
    500: "Server Internal Error", 501: "Not Implemented", 503: "Service Unavailable",
    505: "Version Not Supported", 600: "Busy Everywhere", 603: "Decline",
}  # fmt: skip

_COMPACT = {
    "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length", "c": "content-type",
    "k": "supported", "s": "subject", "e": "content-encoding", "x": "session-expires", "r": "refer-to",
    "b": "referred-by", "o": "event", "u": "allow-events",
}  # fmt: skip
_TOKEN = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]+\Z")
_CSEQ = re.compile(r"(\d{1,10})[ \t]+(\S+)\Z")
_STATUS_LINE = re.compile(r"SIP/2\.0 ([1-6]\d\d)(?: (.*))?\Z", re.S)


class Malformed(ValueError):  # noqa: N818 - named by the fact, as all refusals here
    """These bytes are not a SIP message; `request` is what can still be answered with `status`, if anything."""

    def __init__(self, why: str, *, request: Request | None = None, status: int = 400) -> None:
        super().__init__(why)
        self.request = request
        self.status = status


@dataclass(frozen=True, slots=True)
class Headers:
    """Header fields in their order; names are matched without case and in their compact forms."""

    items: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, *pairs: tuple[str, str | None], extra: Mapping[str, str] | None = None) -> Headers:
        """Build from name and value pairs, leaving out those without a value."""
        return cls((*((name, value) for name, value in pairs if value is not None), *(extra or {}).items()))

    def all(self, name: str) -> list[str]:
        """Every value of a header, in order, as written."""
        wanted = _canonical(name)
        return [value for key, value in self.items if _canonical(key) == wanted]

    def get(self, name: str, default: str = "") -> str:
        """The first value of a header."""
        return next(iter(self.all(name)), default)

    def listed(self, name: str) -> list[str]:
        """Every element of a comma-separated header such as Via, Route or Supported."""
        return [part for value in self.all(name) for part in split_list(value)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(self.all(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.items)


def _canonical(name: str) -> str:
    lowered = name.lower()
    return _COMPACT.get(lowered, lowered)


@dataclass(frozen=True, slots=True)
class _Message:
    headers: Headers = field(default_factory=Headers)
    body: bytes = b""

    @property
    def call_id(self) -> str:
        return self.headers.get("Call-ID")

    @property
    def cseq(self) -> int:
        return _cseq(self.headers.get("CSeq"))[0]

    @property
    def cseq_method(self) -> str:
        return _cseq(self.headers.get("CSeq"))[1]

    @property
    def from_(self) -> Address:
        return parse_address(self.headers.get("From"))

    @property
    def to(self) -> Address:
        return parse_address(self.headers.get("To"))

    @property
    def via(self) -> Via:
        return parse_via(self.headers.listed("Via")[0])

    def _encode(self, start: str) -> bytes:
        lines = [start]
        if "\r" in start or "\n" in start:
            raise ValueError("the SIP address or reason has a line break; pass plain text")
        for name, value in (*self.headers, ("Content-Length", str(len(self.body)))):
            if "\r" in value or "\n" in value or not _TOKEN.match(name):
                raise ValueError(f"the SIP header {name!r} has a line break or a bad name; pass plain text")
            lines.append(f"{name}: {value}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape") + self.body


@dataclass(frozen=True, slots=True)
class Request(_Message):
    """A SIP request."""

    method: str = ""
    uri: str = ""

    def encode(self) -> bytes:
        """The bytes on the wire, Content-Length included; raises ValueError for what would not be one message."""
        if " " in self.uri:
            raise ValueError(f"{self.uri!r} cannot be called; take the spaces out")
        return self._encode(f"{self.method} {self.uri} SIP/2.0")


@dataclass(frozen=True, slots=True)
class Response(_Message):
    """A SIP response."""

    status: int = 0
    reason: str = ""

    def encode(self) -> bytes:
        """The bytes on the wire, Content-Length included."""
        return self._encode(f"SIP/2.0 {self.status} {self.reason}")


@dataclass(frozen=True, slots=True)
class Address:
    """A From, To or Contact value."""

    display: str
    uri: str
    params: Mapping[str, str]

    @property
    def tag(self) -> str:
        return self.params.get("tag", "")

    @property
    def user(self) -> str:
        """The user part, empty where the address is not a URI."""
        try:
            return parse_uri(self.uri).user
        except ValueError:
            return ""


@dataclass(frozen=True, slots=True)
class Uri:
    """A sip:, sips: or tel: address."""

    scheme: str
    user: str
    host: str
    port: int | None
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Via:
    """One hop: who sent it and how to answer."""

    host: str
    port: int | None
    params: Mapping[str, str]

    @property
    def branch(self) -> str:
        return self.params.get("branch", "")


def parse(data: bytes) -> Request | Response:
    """Read one datagram; raises Malformed, and nothing else."""
    head, blank, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not blank:
        raise Malformed("no blank line ends the headers")
    if len(head) > MAX_HEAD_BYTES:
        raise Malformed("the headers are too long")
    # Unfold continuation lines (7.3.1); surrogateescape lets foreign bytes (a GBK name) be echoed exactly.
    text = head.decode("utf-8", "surrogateescape").replace("\r\n ", " ").replace("\r\n\t", " ")
    start, *lines = text.split("\r\n")
    if any("\r" in line or "\n" in line for line in (start, *lines)):
        raise Malformed("a line break stands inside a line")  # and must never be echoed
    if len(lines) > MAX_HEADER_LINES:
        raise Malformed("too many headers")
    pairs = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.match(name.rstrip()):
            raise Malformed("a header line has no name")
        pairs.append((name.rstrip(), value.strip()))
    headers = Headers(tuple(pairs))
    status_line = _STATUS_LINE.match(start)
    if status_line:
        _check(headers)
        reason = _readable(status_line[2] or "")
        return Response(headers=headers, body=_body(headers, body), status=int(status_line[1]), reason=reason)
    return _request(start, headers, body)


def _request(start: str, headers: Headers, body: bytes) -> Request:
    method, _, rest = start.partition(" ")
    uri, _, version = rest.rpartition(" ")
    if not _TOKEN.match(method) or not version.startswith("SIP/"):
        raise Malformed("the first line is neither a request nor a status line")
    bare = Request(method=method, uri=uri, headers=headers)
    try:
        _check(headers)
    except Malformed as error:
        raise Malformed(str(error), request=bare if _answerable(headers) else None) from error
    if version != "SIP/2.0":
        raise Malformed("this SIP version is not spoken here", request=bare, status=505)
    if bare.cseq_method != method:
        raise Malformed("CSeq names another method", request=bare)
    scheme, colon, _ = uri.partition(":")
    if not colon or any(character in uri for character in " \t<>"):
        raise Malformed("the request address is not a URI", request=bare)
    if scheme.lower() not in ("sip", "sips", "tel"):
        raise Malformed("this kind of address is not called here", request=bare, status=416)
    try:
        return replace(bare, body=_body(headers, body))
    except Malformed as error:
        raise Malformed(str(error), request=bare) from error


def _check(headers: Headers) -> None:
    """Require what every message must have (8.1.1), so that later look-ups cannot fail."""
    for name in ("Via", "From", "To", "Call-ID", "CSeq"):
        if not headers.get(name):
            raise Malformed(f"{name} is missing")
    try:
        _cseq(headers.get("CSeq"))
        parse_address(headers.get("From"))
        parse_address(headers.get("To"))
        parse_via(headers.listed("Via")[0])
    except (ValueError, IndexError) as error:
        raise Malformed(f"a header cannot be read: {error}") from error


def _answerable(headers: Headers) -> bool:
    """Whether a 400 can find its way back: the headers a response copies are there and Via can be read."""
    if not all(headers.get(name) for name in ("From", "To", "Call-ID", "CSeq")):
        return False
    try:
        parse_via(headers.listed("Via")[0])
    except (ValueError, IndexError):
        return False
    return True


def _cseq(value: str) -> tuple[int, str]:
    match = _CSEQ.match(value)
    if not match or int(match[1]) >= 1 << 31:
        raise ValueError("CSeq is not a number and a method")
    return int(match[1]), match[2]


def _body(headers: Headers, body: bytes) -> bytes:
    length = headers.get("Content-Length")
    if not length:
        return body
    if not (length.isascii() and length.isdigit() and len(length) < 7) or int(length) > len(body):
        raise Malformed("Content-Length does not fit the packet")
    return body[: int(length)]


def split_list(value: str) -> list[str]:
    """Split a header at its commas, leaving those inside quotes and angle brackets."""
    parts, start, quoted, depth, escaped = [], 0, False, False, False
    for index, character in enumerate(value):
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = character == "\\", character != '"'
        elif character == '"':
            quoted = True
        elif character in "<>":
            depth = character == "<"
        elif character == "," and not depth:
            parts.append(value[start:index].strip())
            start = index + 1
    parts.append(value[start:].strip())
    return [part for part in parts if part]


def parse_address(value: str) -> Address:
    """Read a From, To or Contact value; raises ValueError."""
    rest, display = value.strip(), ""
    if rest.startswith('"'):
        end = 1
        while end < len(rest) and rest[end] != '"':
            end += 2 if rest[end] == "\\" else 1
        if end >= len(rest):
            raise ValueError("a quoted name does not end")
        display, rest = re.sub(r"\\(.)", r"\1", rest[1:end], flags=re.S), rest[end + 1 :].strip()
        if not rest.startswith("<"):
            raise ValueError("a name has no address")
    if "<" in rest:
        before, _, tail = rest.partition("<")
        uri, closed, params = tail.partition(">")
        if not closed:
            raise ValueError("an address does not end")
        display = display or before.strip()
    else:
        uri, _, params = rest.partition(";")
    if not uri.strip() or any(character.isspace() for character in uri.strip()):
        raise ValueError("an address is empty or has spaces")
    return Address(_readable(display), uri.strip(), _params(params))


def _readable(name: str) -> str:
    """A display name as text: UTF-8, or the GBK that older Chinese exchanges send."""
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("gb18030", "replace")


def parse_uri(value: str) -> Uri:
    """Read a URI; raises ValueError."""
    scheme, colon, rest = value.partition(":")
    if not colon:
        raise ValueError("an address has no scheme")
    if scheme.lower() == "tel":
        return Uri("tel", rest.partition(";")[0], "", None, {})
    user, _, host = rest.partition("?")[0].rpartition("@")
    host, _, params = host.partition(";")
    name, port = _host_port(host)
    return Uri(scheme.lower(), user.partition(":")[0], name, port, _params(params))


def parse_via(value: str) -> Via:
    """Read one Via element; raises ValueError."""
    sent, _, params = value.partition(";")
    protocol, _, sent_by = sent.strip().partition(" ")
    if not protocol.upper().startswith("SIP/2.0/") or not sent_by.strip():
        raise ValueError("Via is not SIP/2.0/… and a host")
    host, port = _host_port(sent_by.strip())
    return Via(host, port, _params(params))


def _host_port(value: str) -> tuple[str, int | None]:
    if value.startswith("["):
        host, _, rest = value[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = value.partition(":")
    port = port.strip()
    if not port:
        return host.strip(), None
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise ValueError("a port is not a number from 1 to 65535")
    return host.strip(), int(port)


def _params(value: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in value.split(";"):
        name, _, text = part.partition("=")
        if name.strip():
            found.setdefault(name.strip().lower(), text.strip().strip('"'))
    return found


def host_text(host: str, port: int | None = None) -> str:
    """Write a host for a URI or Via, with brackets round an IPv6 address."""
    bracketed = f"[{host}]" if ":" in host else host
    return bracketed if port is None else f"{bracketed}:{port}"


def quoted(text: str) -> str:
    """Write a display name as a quoted string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


# ---------------------------------------------------------------------------------------------------------- digest


_DIGESTS = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}  # what Asterisk asks for; strongest last
_CHALLENGE_PART = re.compile(r'(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,"]+)')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One WWW-Authenticate or Proxy-Authenticate offer that we can answer."""

    realm: str
    nonce: str
    algorithm: str
    qop: str | None
    opaque: str | None
    stale: bool
    proxy: bool


def best_challenge(response: Response) -> Challenge | None:
    """The strongest digest this response offers that we can answer, or None."""
    offers = [
        offer
        for header, proxy in (("WWW-Authenticate", False), ("Proxy-Authenticate", True))
        for value in response.headers.all(header)
        if (offer := _challenge(value, proxy=proxy))
    ]
    return max(offers, key=lambda offer: offer.algorithm.startswith("SHA"), default=None)


def _challenge(value: str, *, proxy: bool) -> Challenge | None:
    if not value.lower().startswith("digest ") or len(value) > 4096:
        return None
    parts = {
        name.lower(): re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text
        for name, text in _CHALLENGE_PART.findall(value[7:])
    }
    algorithm = parts.get("algorithm", "MD5").upper()
    offered = [option.strip().lower() for option in parts.get("qop", "").split(",") if option.strip()]
    if algorithm.removesuffix("-SESS") not in _DIGESTS or (offered and "auth" not in offered):
        return None
    if "realm" not in parts or "nonce" not in parts:
        return None
    return Challenge(
        realm=parts["realm"],
        nonce=parts["nonce"],
        algorithm=algorithm,
        qop="auth" if offered else None,
        opaque=parts.get("opaque"),
        stale=parts.get("stale", "").lower() == "true",
        proxy=proxy,
    )


def digest(
    challenge: Challenge,
    *,
    username: str,
    password: str,
    method: str,
    uri: str,
    cnonce: str,
    nonce_count: int = 1,
) -> str:
    """The response value of RFC 7616 3.4.1, in hex."""

    def hashed(text: str) -> str:
        return _DIGESTS[challenge.algorithm.removesuffix("-SESS")](text.encode()).hexdigest()

    secret = hashed(f"{username}:{challenge.realm}:{password}")
    if challenge.algorithm.endswith("-SESS"):
        secret = hashed(f"{secret}:{challenge.nonce}:{cnonce}")
    request = hashed(f"{method}:{uri}")
    if challenge.qop is None:
        return hashed(f"{secret}:{challenge.nonce}:{request}")
    return hashed(f"{secret}:{challenge.nonce}:{nonce_count:08x}:{cnonce}:{challenge.qop}:{request}")


def authorization(
    challenge: Challenge, *, username: str, password: str, method: str, uri: str, cnonce: str
) -> tuple[str, str]:
    """The header, name and value, that answers a challenge."""
    answer = digest(challenge, username=username, password=password, method=method, uri=uri, cnonce=cnonce)
    parts = [
        f"username={quoted(username)}",
        f"realm={quoted(challenge.realm)}",
        f"nonce={quoted(challenge.nonce)}",
        f"uri={quoted(uri)}",
        f'response="{answer}"',
        f"algorithm={challenge.algorithm}",
    ]
    if challenge.qop or challenge.algorithm.endswith("-SESS"):
        parts.append(f'cnonce="{cnonce}"')
    if challenge.qop:
        parts += [f"qop={challenge.qop}", "nc=00000001"]
    if challenge.opaque is not None:
        parts.append(f"opaque={quoted(challenge.opaque)}")
    return "Proxy-Authorization" if challenge.proxy else "Authorization", "Digest " + ", ".join(parts)


# ------------------------------------------------------------------------------------------------------------- SDP


class Direction(Enum):
    """Which way audio flows, seen from who wrote it (RFC 3264 5.1)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"

    @property
    def sends(self) -> bool:
        return self in (Direction.SENDRECV, Direction.SENDONLY)

    @property
    def receives(self) -> bool:
        return self in (Direction.SENDRECV, Direction.RECVONLY)

    def answered(self, wished: Direction) -> Direction:
        """Our answer to this offer when we wish for `wished` (RFC 3264 6.1)."""
        sends = wished.sends and self.receives
        receives = wished.receives and self.sends
        if sends:
            return Direction.SENDRECV if receives else Direction.SENDONLY
        return Direction.RECVONLY if receives else Direction.INACTIVE


@dataclass(frozen=True, slots=True)
class Audio:
    """The audio line of an SDP: where to send, in which laws, which payload type carries digits."""

    host: str
    port: int
    codecs: tuple[Codec, ...]
    digit_type: int | None = 101
    direction: Direction = Direction.SENDRECV


def parse_sdp(body: bytes) -> Audio | None:
    """The first plain RTP audio line with a law we speak, or None."""
    lines = body.decode("utf-8", "replace").replace("\r\n", "\n").split("\n")[:500]
    host = ""
    section: list[str] | None = None  # the lines of the chosen m=audio
    other = False
    for line in lines:
        if line.startswith("m="):
            other = section is not None or not line.startswith("m=audio ")
            if not other:
                section = [line]
        elif not other:
            if section is not None:
                section.append(line)
            elif line.startswith("c="):
                host = line.split(" ")[-1].strip()
    return _audio(section, host) if section else None


def _audio(section: Sequence[str], host: str) -> Audio | None:
    words = section[0].split()
    if len(words) < 4 or words[2] not in ("RTP/AVP", "RTP/AVPF"):
        return None
    port, types = _number(words[1].partition("/")[0], 65535), [_number(word, 127) for word in words[3:]]
    names = {0: "PCMU/8000", 8: "PCMA/8000"}
    direction = Direction.SENDRECV
    for line in section[1:]:
        if line.startswith("c="):
            host = line.split(" ")[-1].strip()
        elif line.startswith("a=rtpmap:"):
            number, _, name = line[9:].partition(" ")
            if (mapped := _number(number, 127)) is not None:
                names[mapped] = name.strip().upper().removesuffix("/1")
        elif line.startswith("a=") and line[2:].strip() in {known.value for known in Direction}:
            direction = Direction(line[2:].strip())
    codecs = tuple(
        codec
        for kind in types
        for codec in Codec
        if kind == codec.value and names[kind] == f"{codec.name}/8000"
    )
    digits = next((kind for kind in types if kind and names.get(kind) == "TELEPHONE-EVENT/8000"), None)
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if not port or not codecs:
        return None
    if address.is_unspecified:  # the old way to say hold (RFC 2543 B.5)
        direction = Direction.INACTIVE
    return Audio(host, port, tuple(dict.fromkeys(codecs)), digits, direction)


def _number(text: str, most: int) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= most else None


def build_sdp(audio: Audio, *, session: int, version: int) -> bytes:
    """Write an offer or an answer with 20 ms packets."""
    family = "IP6" if ":" in audio.host else "IP4"
    types = [str(codec.value) for codec in audio.codecs]
    maps = [f"a=rtpmap:{codec.value} {codec.name}/8000" for codec in audio.codecs]
    if audio.digit_type is not None:
        types.append(str(audio.digit_type))
        maps += [f"a=rtpmap:{audio.digit_type} telephone-event/8000", f"a=fmtp:{audio.digit_type} 0-15"]
    lines = [
        "v=0",
        f"o=- {session} {version} IN {family} {audio.host}",
        "s=-",
        f"c=IN {family} {audio.host}",
        "t=0 0",
        f"m=audio {audio.port} RTP/AVP {' '.join(types)}",
        *maps,
        "a=ptime:20",
        f"a={audio.direction.value}",
    ]
    return ("\r\n".join(lines) + "\r\n").encode()
