"""Words that mean something to somebody - a shell, a dialplan, AMI, SQL, HTML, a terminal - wherever words are taken.

A citizen and an agent talk all the while. What is stored is what was sent, or the answer is a sentence; nothing in the
words is ever done.
"""

import asyncio
import itertools
import json
import os
import re
import unicodedata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from tests.e2e.house import House, Rest, talking, until, until_hears
from tests.e2e.sip_rubbish import SDP, message
from tests.e2e.test_rubbish_sip import CARRIER, Watch, quiet_again, send, where

FILE = "NAUGHTY_STRINGS"
"""Names a JSON file with a list of further strings, for a run by hand."""

VICTIM = "@CALL@"
"""Stands for the id of the call that goes on: whoever could end it with words would write it there."""

WORDS = [
    "\r\nAction: Hangup\r\nChannel: " + VICTIM + "\r\n\r\n",
    "1\r\n\r\nEvent: Hangup\r\nUniqueid: " + VICTIM + "\r\n\r\n",
    "1\r\n\r\nEvent: HangupRequest\r\nUniqueid: " + VICTIM + "\r\n\r\n",
    "1\r\nUniqueid: " + VICTIM,
    "1\nUserEvent: AfterTalk\nUniqueid: " + VICTIM,
    "${SHELL(id)}",
    "${CHANNEL(name)}",
    "${HANGUPCAUSE}$[1/0]",
    "$[0=0]?Hangup()",
    "1):Hangup(",
    ":System(id)",
    "138&PJSIP/1002",
    "138|1002",
    "a,b,c",
    "a;b=c",
    "a%3Bb",
    '"',
    "\\",
    '\\"\\\\"',
    "'",
    "`id`",
    "$(id)",
    "' OR 1=1 --",
    "'; DROP TABLE tickets; --",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<sip:1002@127.0.0.1>",
    "../../etc/passwd",
    "..\\..\\windows",
    "/dev/null",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b2J\x85",
    "\u202e12345\u202c",
    "\u2066evil\u2069",
    "\0",
    "138\0001002",
    "\ud800",
    "\udfff\ud800",
    "😀👩‍👩‍👧",
    "𠀀𠮷",
    "x" * 5000,
    "汉" * 300,
    "你好".encode("gbk").decode("utf-8", "surrogateescape"),
    "\udcff\udcfe\udc80",
    "שלום عليكم",
    "a\u200bb\ufeffc\u2060",
    "%s%n%x%p",
    "%00%0d%0a",
    "{{7*7}}",
    "${jndi:ldap://x/a}",
    '"},{"type":"hangup","id":1,"call_id":"' + VICTIM + '"}',
    "\u2028\u2029",
    "null",
    "NaN",
    "-1",
    "1e309",
    " ",
    "e\u0301\u0301\u0301" * 40,
    "ﷺ" * 20,
]
DRAWN = "https://x.example/?a=b&c=d#e"
LONGEST = 40
"""Of a word in one header among many, so that all of a message fits one datagram."""


def words(call_id: str) -> list[str]:
    given = os.environ.get(FILE)
    found = [*WORDS, DRAWN, *(json.loads(Path(given).read_text("utf-8")) if given else [])]
    return [word.replace(VICTIM, call_id) for word in found]


# --- over the telephone ---------------------------------------------------------------------------------------------


def quoted(word: str) -> str:
    """The word as a right quoted-string (RFC 3261 25.1); only line ends cannot stand in one."""
    return '"' + re.sub(r'(["\\])', r"\\\1", re.sub(r"[\r\n\0]", " ", word)) + '"'


def escaped(word: str) -> str:
    """The word as the user of a SIP URI: every byte of it that has a meaning is written in hexadecimal."""
    return quote(word.encode("utf-8", "surrogateescape")[:200], safe="")


def calls_of(word: str, house: str, here: str) -> list[bytes]:
    """Calls with the word in what the house reads or passes on: well written first, then as it is."""
    body = SDP.format(port=40000, formats="8", rest="")
    word = as_bytes(word)
    plain = word[:LONGEST]
    user, name = escaped(word), quoted(word[:400])
    tag = "tag=1"

    def call(**changed: Any) -> bytes:
        return message("INVITE", house=house, here=here, body=body, **changed)

    raw = {
        "From": f'"{word}" <sip:{word}@{here}>;{tag}',
        "To": f'"{word}" <sip:12345@{house}>;x={plain}',
        "Contact": f'"{plain}" <sip:{plain}@{here};x={plain}>',
        "P-Asserted-Identity": f'"{plain}" <sip:{word}@{here}>',
        "Remote-Party-ID": f'"{plain}" <sip:{plain}@{here}>;party=calling',
        "Diversion": f'"{plain}" <sip:{plain}@{here}>;reason={plain}',
        "User-Agent": word,
        "Subject": word,
        "Call-ID": word,
    }
    return [
        call(
            change={"From": f"{name} <sip:{user or '1'}@{here}>;{tag}", "To": f"{name} <sip:12345@{house}>"}
        ),
        call(change={"P-Asserted-Identity": f"{name} <sip:{user or '1'}@{here}>"}),
        call(change={"Remote-Party-ID": f"{name} <sip:{user or '1'}@{here}>;party=calling"}),
        call(change={"Diversion": f"{name} <sip:{user or '1'}@{here}>;reason={quoted(plain)}"}),
        call(change={"User-Agent": one_line(word), "Subject": one_line(word)}),
        call(first=f"INVITE sip:12345{user}@{house} SIP/2.0"),
        call(first=f"INVITE sip:1{user}@{house} SIP/2.0", to=f"1{user}"),
        call(first=f"INVITE sip:{user or '1'}@{house} SIP/2.0"),
        *(call(change={header: value}) for header, value in raw.items()),
    ]


def guesses_of(word: str, house: str, here: str) -> list[bytes]:
    """Registrations of a name that is the word: what is told of who does not get in holds it."""
    word = as_bytes(word)
    name = word[:LONGEST]
    proof = f'realm="asterisk", nonce="1/1", uri="sip:{house}", response="{"0" * 32}"'
    return [
        message(
            "REGISTER",
            house=house,
            here=here,
            user=user or "1",
            to=user or "1",
            more=(f"Authorization: Digest username={said}, {proof}",),
        )
        for user, said in ((escaped(word), quoted(name)), ("1001", f'"{name}"'), (name, '"1001"'))
    ]


def as_bytes(word: str) -> str:
    """For the wire: also what no encoding knows becomes bytes."""
    return word.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def one_line(word: str) -> str:
    return re.sub(r"[\r\n\0]", " ", word)


async def test_words_in_every_header_of_a_call(clean_house: House) -> None:
    """From the trunk, where all is looked at, and from somebody unknown, who is only asked for a password."""
    before = clean_house.log.stat().st_size
    async with (
        talking(clean_house, specialist=True) as talk,
        clean_house.phone("1002") as bystander,
        clean_house.rest("leader1") as leader,
    ):
        watch = Watch(clean_house, talk)
        legs = {row.get("Channel") for row in await clean_house.channel_rows()}
        known = len((await leader.get("/api/v1/call-records?limit=200"))["calls"])
        for number, word in enumerate(words(talk.call_id)):
            # Each from another address: nobody is shut out yet.
            stranger = f"127.0.9.{number % 250 + 1}"
            calls = calls_of(word, *where(clean_house, CARRIER))
            await send(clean_house, CARRIER, calls, after=10)
            await send(clean_house, stranger, guesses_of(word, *where(clean_house, stranger)), after=1)
            seen = await talk.seen()
            assert (seen["phase"], talk.call.ended.is_set(), talk.desk.ended.is_set()) == (
                "talking",
                False,
                False,
            ), repr(word)
        await watch.nothing_happened()
        await quiet_again(clean_house)
        assert {row.get("Channel") for row in await clean_house.channel_rows()} == legs
        for phone in (bystander, talk.specialist.phone):
            await nothing_rings(phone)
        records = (await leader.get("/api/v1/call-records?limit=200"))["calls"]
        assert len(records) > known
        for record in records:
            assert not unprintable(record["caller"] or ""), record
        await the_agent_still_works(talk.agent.rest)
    names_of_files_are_plain(clean_house)
    log_is_whole(clean_house, before)


async def test_who_calls_is_who_the_carrier_says_he_is(clean_house: House) -> None:
    house, here = where(clean_house, CARRIER)
    body = SDP.format(port=40000, formats="8", rest="")
    said = {
        "13900000001": [],
        "13900000002": [f"P-Asserted-Identity: <sip:13900000002@{here}>"],
        "13900000003": [f'P-Asserted-Identity: "<sip:110@{here}>" <sip:13900000003@{here};user=phone>'],
        "+8613900000004": ["P-Asserted-Identity: <tel:+8613900000004>"],
        "+8613900000005": ['P-Asserted-Identity: "110" <tel:+8613900000005;phone-context=+1>'],
    }
    calls = [
        message("INVITE", house=house, here=here, body=body, user="13900000001", more=tuple(more))
        for more in said.values()
    ]
    async with clean_house.rest("leader1") as leader:
        await send(clean_house, CARRIER, calls)

        async def callers() -> set[str]:
            return {each["caller"] for each in (await leader.get("/api/v1/call-records?limit=20"))["calls"]}

        await until(callers, lambda seen: seen >= said.keys())


async def nothing_rings(phone: Any) -> None:
    try:
        await phone.next_call(0.05)
    except TimeoutError:
        return
    raise AssertionError("a telephone was rung")


async def the_agent_still_works(agent: Rest) -> None:
    assert (await agent.get("/api/v1/me"))["agent"]["state"] == "talking"


def unprintable(text: str) -> str:
    """What of it could move a cursor, end a line, or turn the direction of what follows."""
    return "".join(sign for sign in text if unicodedata.category(sign) in {"Cc", "Cs", "Zl", "Zp"})


def names_of_files_are_plain(house: House) -> None:
    for path in house.recordings.rglob("*"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+", path.name), path


def log_is_whole(house: House, offset: int) -> None:
    """Every line is one JSON object and holds nothing a terminal would obey."""
    lines = house.log.read_bytes()[offset:].decode("utf-8").split("\n")
    assert lines.pop() == ""
    for line in lines:
        assert isinstance(json.loads(line), dict)
        assert not unprintable(line), line[:300]
        assert not any(unicodedata.bidirectional(sign) in TURNING for sign in line), line[:300]


TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


# --- at the screen --------------------------------------------------------------------------------------------------


async def test_words_in_every_field_of_the_screen(clean_house: House) -> None:
    before = clean_house.log.stat().st_size
    async with (
        talking(clean_house, specialist=True) as talk,
        clean_house.rest("leader1") as leader,
        clean_house.phone("1002") as bystander,
    ):
        seen = await talk.until(lambda call: call["ticket_number"])
        rest, ticket = talk.agent.rest, seen["ticket_number"]
        for number, word in enumerate(words(talk.call_id)):
            async with console(clean_house, rest.token, client=f"rubbish-{number}") as screen:
                for kind, body in fields(word):
                    await refused(rest, "POST", f"/api/v1/calls/{talk.call_id}/{kind}", body)
                    asked = {"type": kind.replace("-", "_"), "call_id": talk.call_id} | body
                    assert (await ask(screen, asked))["type"] == "refused", (kind, word)
                for state in ({"state": "not_ready", "reason": word}, {"state": word}):
                    await refused(rest, "PUT", "/api/v1/me/state", state)
                    assert (await ask(screen, {"type": "set_state"} | state))["type"] == "refused", word
                await note_is_kept_or_refused(rest, talk.call_id, word)
                await note_is_kept_or_refused_on_screen(screen, rest, talk.call_id, word)
                await form_is_kept_or_refused(rest, ticket, word)
            await asked_for(leader, word)
        for word in WORDS[::8]:  # each costs a password's hash
            await refused(leader, "POST", "/api/v1/session", {"user": word, "password": word})
        after = await talk.seen()
        assert (after["phase"], after["legs"]) == ("talking", seen["legs"])
        for phone in (bystander, talk.specialist.phone):
            await nothing_rings(phone)
        await until_hears(talk.call, "agent")
        await until_hears(talk.desk, "caller")
    names_of_files_are_plain(clean_house)
    log_is_whole(clean_house, before)


def fields(word: str) -> list[tuple[str, dict[str, Any]]]:
    """Every text of a command, with the word in it."""
    return [
        *(("invite", {kind: word}) for kind in ("user", "skill", "number")),
        *(("transfer", {kind: word}) for kind in ("agent", "queue", "number")),
        ("mute", {"on": True, "leg_id": word or "-"}),
        ("drop", {"leg_id": word}),
        ("wrap-up", {"disposition": word, "note": word}),
    ]


async def refused(rest: Rest, method: str, path: str, body: dict[str, Any]) -> None:
    """With a sentence, and without the whole of what was sent."""
    async with rest.session.request(method, path, data=json.dumps(body), headers=rest._headers()) as answer:
        said = await answer.json()
        assert answer.status in {400, 401, 404, 409, 429}, (path, body, said)
        assert said["error"]["message_zh"]
        assert len(json.dumps(said)) < 3000


async def note_is_kept_or_refused(rest: Rest, call_id: str, word: str) -> None:
    body = {"disposition": "answered", "note": word, "more_time": True}
    path = f"/api/v1/calls/{call_id}/wrap-up"
    async with rest.session.post(path, data=json.dumps(body), headers=rest._headers()) as answer:
        said = await answer.json()
    if answer.status == 200:
        assert said["call"]["note"] == word
    else:
        assert (answer.status, bool(said["error"]["message_zh"])) == (400, True), (word, said)


async def note_is_kept_or_refused_on_screen(
    screen: aiohttp.ClientWebSocketResponse, rest: Rest, call_id: str, word: str
) -> None:
    command = {
        "type": "wrap_up",
        "call_id": call_id,
        "disposition": "answered",
        "note": word,
        "more_time": True,
    }
    answer = await ask(screen, command)
    if answer["type"] == "done":
        assert (await rest.get(f"/api/v1/calls/{call_id}"))["note"] == word
    else:
        assert (answer["reason"], bool(answer["message_zh"])) == ("bad_message", True)


async def form_is_kept_or_refused(rest: Rest, ticket: str, word: str) -> None:
    """All its texts at once, and what is not kept one by one."""
    path = f"/api/v1/tickets/{ticket}/form"
    texts = ("title", "content", "region", "address", "contact_name", "contact_phone", "reply")
    for given in (dict.fromkeys(texts, word), *({name: word} for name in (*texts, "kind", "category"))):
        body = {"version": (await rest.get(path))["version"]} | given
        async with rest.session.put(path, data=json.dumps(body), headers=rest._headers()) as answer:
            said = await answer.json()
        if answer.status == 200:
            kept = await rest.get(path)
            assert {name: kept[name] for name in given} == given
            return
        assert answer.status == 400, said
        assert said["error"]["message_zh"]


async def asked_for(rest: Rest, word: str) -> None:
    """In the queries: found, nothing found, or refused; never all there is."""
    for path in ("/api/v1/tickets", "/api/v1/call-records"):
        for name in ("line", "agent", "caller", "number", "after", "from", "status"):
            address = f"{path}?{name}={escaped(as_bytes(word))}"
            async with rest.session.get(URL(address, encoded=True), headers=rest._headers()) as answer:
                said = await answer.json()
            assert answer.status in {200, 400}, (address, said)
            if answer.status == 200 and word and name != "from":  # -1 is a time
                assert [*said.get("tickets", ()), *said.get("calls", ())] == [], address


@asynccontextmanager
async def console(house: House, token: str, *, client: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession(house.url) as session,
        session.ws_connect("/api/v1/console", max_msg_size=0) as screen,
    ):
        await screen.send_json({"type": "hello", "version": 1, "token": token, "client": client})
        yield screen


async def ask(screen: aiohttp.ClientWebSocketResponse, command: dict[str, Any]) -> dict[str, Any]:
    """The answer to a command, also of one that could not be read; what comes in between is valid JSON."""
    number = next(NUMBERS)
    await screen.send_str(json.dumps({"id": number} | command))
    async with asyncio.timeout(20):
        while True:
            said: dict[str, Any] = json.loads(await screen.receive_str())
            if said["type"] in {"done", "refused"} and said["id"] in {number, None}:
                return said


NUMBERS = itertools.count(1)
