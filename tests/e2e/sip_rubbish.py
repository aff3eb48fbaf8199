"""Messages that break SIP, each made here from what RFC 4475 describes or from what scanners send.

``messages`` takes where it is sent to and from; every entry is one datagram, or one connection's bytes.
"""

from __future__ import annotations

import secrets

CRLF = b"\r\n"
SDP = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio {port} RTP/AVP {formats}\r\n{rest}"
)


def message(
    method: str = "INVITE",
    *,
    house: str,
    here: str,
    to: str = "12345",
    user: str = "13800009999",
    drop: tuple[str, ...] = (),
    change: dict[str, str] | None = None,
    more: tuple[str, ...] = (),
    body: str = "",
    length: str | None = None,
    first: str | None = None,
) -> bytes:
    """A right request with some of its lines dropped, changed or added."""
    headers = {
        "Via": f"SIP/2.0/UDP {here};branch=z9hG4bK{secrets.token_hex(8)}",
        "Max-Forwards": "70",
        "From": f"<sip:{user}@{here}>;tag={secrets.token_hex(4)}",
        "To": f"<sip:{to}@{house}>",
        "Call-ID": secrets.token_hex(12),
        "CSeq": f"1 {method}",
        "Contact": f"<sip:{user}@{here}>",
        "Content-Type": "application/sdp",
        "Content-Length": str(len(body.encode("utf-8", "surrogateescape"))) if length is None else length,
    } | (change or {})
    lines = [first if first is not None else f"{method} sip:{to}@{house} SIP/2.0"]
    lines += [f"{name}: {value}" for name, value in headers.items() if name not in drop]
    return "\r\n".join([*lines, *more, "", body]).encode("utf-8", "surrogateescape")


def broken_syntax(house: str, here: str) -> dict[str, bytes]:
    """What no parser may fall over; most of it cannot be answered."""

    def of(method: str = "OPTIONS", **options: object) -> bytes:
        return message(method, house=house, here=here, **options)  # type: ignore[arg-type]  # as named there

    every = ("Via", "From", "To", "Call-ID", "CSeq", "Max-Forwards", "Contact")
    found = {f"without {name}": of("INVITE", drop=(name,)) for name in every}
    found |= {
        "nothing": b"",
        "blank lines": CRLF * 2000,
        "zeros": bytes(3000),
        "every byte": bytes(range(256)) * 20,
        "not SIP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "request line alone": b"INVITE sip:12345@127.0.0.1 SIP/2.0\r\n\r\n",
        "no version": of(first=f"OPTIONS sip:12345@{house}"),
        "SIP/7.0": of(first=f"OPTIONS sip:12345@{house} SIP/7.0"),
        "spaces in the request line": of(first=f"OPTIONS  sip:12345@{house}; lr  SIP/2.0"),
        "brackets round the request URI": of(first=f"OPTIONS <sip:12345@{house}> SIP/2.0"),
        "unknown scheme": of(first="OPTIONS nobodyKnowsThisScheme:totally SIP/2.0"),
        "tel": of(first="INVITE tel:+8612345;phone-context=evil SIP/2.0"),
        "method of every token character": of("!interesting-Method0123456789_*+`.%indeed'~"),
        "method in the CSeq is another": of("OPTIONS", change={"CSeq": "8 INVITE"}),
        "CSeq too large": of(change={"CSeq": "36893488147419103232 OPTIONS"}),
        "CSeq below zero": of(change={"CSeq": "-1 OPTIONS"}),
        "CSeq of letters": of(change={"CSeq": "first OPTIONS"}),
        "Max-Forwards 300": of(change={"Max-Forwards": "300"}),
        "Max-Forwards 0": of(change={"Max-Forwards": "0"}),
        "Max-Forwards of letters": of(change={"Max-Forwards": "many"}),
        "length below zero": of(length="-999"),
        "length far too large": of(body="v=0\r\n", length="999999999999"),
        "length a little too large": of(body="v=0\r\n", length="9999"),
        "length too small": of(body="v=0\r\n", length="1"),
        "length of letters": of(length="long"),
        "two lengths": of(more=("Content-Length: 5", "l: 13"), body="v=0\r\no=-"),
        "two Call-IDs, Froms, Tos and CSeqs": of(
            more=("Call-ID: other", f"From: <sip:x@{here}>;tag=1", "To: <sip:y@z>", "CSeq: 9 INVITE")
        ),
        "open quote": of(change={"To": f'"Mr. J. User <sip:12345@{house}>'}),
        "quotes in quotes": of(change={"From": f'"\\"\\\\\\"" "" <sip:a@{here}>;tag="\\""'}),
        "brackets missing": of(change={"Contact": f"sip:a@{here}?Route=%3Csip:evil%3E;;,;,,"}),
        "semicolons": of(change={"Via": f"SIP/2.0/UDP {here};;,;,,;branch=z9hG4bK1"}),
        "branch without the cookie": of(change={"Via": f"SIP/2.0/UDP {here};branch=z9hG4bK"}),
        "unknown transport": of(change={"Via": f"SIP/2.0/UNKNOWN {here};branch=z9hG4bKunk"}),
        "port 99999": of(change={"Via": "SIP/2.0/UDP 127.0.0.1:99999;branch=z9hG4bKport"}),
        "escaped nulls": of("REGISTER", user="null-%00-null", to="%00%00"),
        "escapes everywhere": of("REGISTER", user="%55%73%65%72%0d%0aAction%3a%20Originate"),
        "escape without digits": of(first=f"OPTIONS sip:12%z%%@{house} SIP/2.0"),
        "UTF-8": of("INVITE", change={"From": f'"热线来电𠀀\u202e反" <sip:a@{here}>;tag=1'}),
        "GBK": of("INVITE", change={"From": f'"@" <sip:a@{here}>;tag=1'}).replace(b'"@"', "热线".encode("gbk")),
        "broken UTF-8": of("INVITE", change={"Subject": "\udcff\udcfe\udc80\udcc0"}),
        "null in a header": of(change={"Subject": "a\0b"}),
        "line end alone": of(change={"Subject": "a\nEvil: yes"}),
        "carriage return alone": of(change={"Subject": "a\rEvil: yes"}),
        "header without a colon": of(more=("this is no header",)),
        "header without a name": of(more=(": x",)),
        "folded lines": of(more=("Subject: a", *[" b"] * 500)),
        "a line of 60,000": of(change={"Subject": "x" * 60_000}),
        "a name of 30,000": of(more=("X" * 30_000 + ": y",)),
        "a user of 10,000": of("INVITE", user="9" * 10_000),
        "a dialled number of 10,000": of("INVITE", to="1" * 10_000),
        "a Call-ID of 20,000": of(change={"Call-ID": "c" * 20_000}),
        "a tag of 20,000": of(change={"From": f"<sip:a@{here}>;tag={'t' * 20_000}"}),
        "a display name of 20,000": of("INVITE", change={"From": f'"{"n" * 20_000}" <sip:a@{here}>;tag=1'}),
        "a thousand Vias": of(more=(f"Via: SIP/2.0/UDP {here};branch=z9hG4bK0",) * 1000),
        "a thousand Routes": of(more=("Route: <sip:192.0.2.1;lr>",) * 1000),
        "a thousand parameters": of(change={"Contact": f"<sip:a@{here}{';p' * 1000}>"}),
        "a thousand headers": of(more=tuple(f"X-{n}: {n}" for n in range(1000))),
        "a thousand Contacts": of("REGISTER", more=(f"Contact: <sip:a@{here}>",) * 1000),
        "Contact * with another": of("REGISTER", more=("Contact: *", "Expires: 0")),
        "expires too large": of("REGISTER", more=("Expires: 99999999999999999999",)),
        "date of nobody": of(more=("Date: Fri, 99 Foo 99999 99:99:99 XYZ",)),
        "credentials of nobody": of("REGISTER", more=("Authorization: NoOneKnowsThisScheme opaque=\"x",)),
        "digest without values": of("REGISTER", more=("Authorization: Digest ,,,=,username",)),
        "digest of 10,000": of("REGISTER", more=(f'Authorization: Digest username="{"u" * 10_000}"',)),
        "warning codes": of(more=("Warning: 1812 overture \"In Progress",)),
        "multipart": of(change={"Content-Type": "multipart/mixed;boundary="}, body="--\r\n\r\n----"),
        "an answer nobody asked for": message(
            "INVITE", house=house, here=here, first="SIP/2.0 200 OK"
        ),
        "an answer of status 4294967301": message(
            "INVITE", house=house, here=here, first="SIP/2.0 4294967301 better not break the receiver"
        ),
        "an answer for everybody": message(
            "INVITE", house=house, here="255.255.255.255", first="SIP/2.0 200 OK"
        ),
        "ACK of nothing": of("ACK"),
        "BYE of nothing": of("BYE", change={"To": f"<sip:12345@{house}>;tag=none"}),
        "CANCEL of nothing": of("CANCEL"),
        "REFER": of("REFER", more=("Refer-To: <sip:0013800000000@127.0.0.1>",)),
        "Replaces": of("INVITE", more=("Replaces: a;to-tag=b;from-tag=c", "Require: replaces")),
        "SUBSCRIBE": of("SUBSCRIBE", more=("Event: presence",)),
        "PUBLISH": of("PUBLISH", more=("Event: presence",)),
        "NOTIFY": of("NOTIFY", more=("Event: refer", "Subscription-State: active")),
        "MESSAGE": of("MESSAGE", body="x" * 5000),
        "INFO of nothing": of("INFO", body="Signal=1\r\nDuration=-5\r\n"),
        "PRACK of nothing": of("PRACK", more=("RAck: 999999999999 1 INVITE",)),
        "Require everything": of("INVITE", more=("Require: nothingSupportsThis", "Proxy-Require: nor, this")),
        "64 kB": of(body="x" * 60_000),
    }  # fmt: skip
    return found


def odd_offers(house: str, here: str) -> dict[str, bytes]:
    """Right calls from the trunk whose media nobody can use, or that contradict themselves."""

    def offer(port: object = 40000, formats: str = "8", rest: str = "a=rtpmap:8 PCMA/8000\r\n") -> str:
        return SDP.format(port=port, formats=formats, rest=rest)

    bodies = {
        "port 0": offer(0),
        "port 1": offer(1),
        "port 70000": offer(70000),
        "port below zero": offer(-1),
        "port of letters": offer("many"),
        "no format": offer(formats=""),
        "format 999": offer(formats="999"),
        "video alone": offer().replace("m=audio", "m=video"),
        "no c=": offer().replace("c=IN IP4 127.0.0.1\r\n", ""),
        "c= of nobody": offer().replace("c=IN IP4 127.0.0.1", "c=IN IP4 300.1.2.3"),
        "c= of letters": offer().replace("c=IN IP4 127.0.0.1", "c=X"),
        "c= everybody": offer().replace("c=IN IP4 127.0.0.1", "c=IN IP4 255.255.255.255"),
        "no o=": offer().replace("o=- 1 1 IN IP4 127.0.0.1\r\n", ""),
        "no t=": offer().replace("t=0 0\r\n", ""),
        "v=9": offer().replace("v=0", "v=9"),
        "huge ptime": offer(rest="a=ptime:4294967295\r\na=maxptime:-1\r\n"),
        "ptime 0": offer(rest="a=ptime:0\r\n"),
        "codec of no rate": offer(formats="96", rest="a=rtpmap:96 PCMA/0\r\n"),
        "codec of a huge rate": offer(formats="96", rest="a=rtpmap:96 L16/4294967295/255\r\n"),
        "unknown codec": offer(formats="97", rest="a=rtpmap:97 EVIL/8000\r\na=fmtp:97 x=${SHELL(id)}\r\n"),
        "a thousand formats": offer(formats=" ".join(str(n % 128) for n in range(1000))),
        "a thousand attributes": offer(rest="a=x:y\r\n" * 1000),
        "a hundred streams": offer() + "m=audio 40000 RTP/AVP 8\r\n" * 100,
        "encrypted without a key": offer().replace("RTP/AVP", "RTP/SAVP"),
        "DTLS without a fingerprint": offer().replace("RTP/AVP", "UDP/TLS/RTP/SAVPF"),
        "a broken key": offer(rest="a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:!!!!\r\n"),
        "half a line": "v=0\r\no=- 1 1 IN",
        "no SDP at all": "this is no SDP \udcff",
        "nothing": "",
    }
    return {
        f"offer: {name}": message("INVITE", house=house, here=here, body=body)
        for name, body in bodies.items()
    }


def broken_streams(house: str, here: str) -> dict[str, list[bytes]]:
    """What TCP can break: framing. Each item of a list is written by itself."""
    right = message("OPTIONS", house=house, here=here).replace(b"/UDP", b"/TCP")
    return {
        "byte by byte": [right[n : n + 1] for n in range(len(right))],
        "two at once": [right + right],
        "a hundred at once": [right * 100],
        "half and no more": [right[: len(right) // 2]],
        "rubbish and then a right one": [b"\0\xff" * 500 + CRLF * 2, right],
        "no length": [message("OPTIONS", house=house, here=here, drop=("Content-Length",)), right],
        "length far too large": [
            message("OPTIONS", house=house, here=here, length="2000000000"),
            b"x" * 5000,
        ],
        "length below zero": [message("OPTIONS", house=house, here=here, length="-5"), right],
        "a header without an end": [b"OPTIONS sip:x SIP/2.0\r\nX: ", *[b"y" * 10_000] * 20],
        "keep-alives": [CRLF * 2] * 200,
        "TLS": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)],
        "HTTP": [b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n" + b"z" * 3000],
    }
