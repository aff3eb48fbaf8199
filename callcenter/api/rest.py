"""Every route: its place, who may use it, what it takes and gives."""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Annotated, Self, assert_never

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import AwareDatetime, Field, StringConstraints, model_validator

from callcenter.api.console import Console
from callcenter.api.desk import Desk
from callcenter.api.figures import Figures, Health
from callcenter.api.forms import Forms
from callcenter.api.home import home_page, home_style
from callcenter.api.pages import Pages
from callcenter.api.ports import Audit, GatePort, RecordingsPort, Standing, TicketReader
from callcenter.api.rights import Login, Right, Viewer
from callcenter.api.softphone import Softphone
from callcenter.api.typed import (
    Contract,
    Problem,
    Query,
    Route,
    contract_of,
    contracts_of,
    json_response,
    openapi_document,
    route,
    routes_of,
)
from callcenter.api.views import (
    AgentsView,
    CallRecordsView,
    CallsView,
    CallView,
    DirectoryView,
    DoneView,
    HealthView,
    InvitationsView,
    MeView,
    NothingView,
    OutcomeCountView,
    QueuesView,
    RecordingsView,
    SessionView,
    TicketLineView,
    TicketsView,
    TicketView,
    agent_view,
    call_view,
    recording_name,
    recording_view,
    ticket_line_view,
    ticket_view,
)
from callcenter.api.wire import CALL_BODIES, CallBody, Message, NumberText, StateBody, Word, wire_document
from callcenter.api.words import Fault
from callcenter.directory.store import LoginReason, LoginRefused
from callcenter.domain import guard
from callcenter.domain.calls import Call, CallId, Outcome, Phase, UserId
from callcenter.domain.guard import Attempt, Door
from callcenter.domain.messages import Reason
from callcenter.quality.recordings import NoSuchRecording
from callcenter.tickets.store import Ticket, TicketStatus

VERSION = metadata.version("callcenter")
_LOGINS_AT_ONCE = 2
_LOGINS_WAITING = 100
_LOGIN_TURN_SECONDS = 4.0
_ONE_HEARING_SECONDS = 600.0
_HEARINGS_REMEMBERED = 1000
_TYPES = {"flac": "audio/flac", "wav": "audio/wav"}


class LoginBody(Message):
    """A user's name and password."""

    user: Word
    password: Annotated[str, StringConstraints(min_length=1, max_length=256)]


class Window(Query):
    since: Annotated[AwareDatetime | None, Field(alias="from", description="Included; with a time zone.")] = (
        None
    )
    until: Annotated[AwareDatetime | None, Field(description="Not included; with a time zone.")] = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise ValueError("from must be before until")
        return self


class Page(Window):
    line: Word | None = None
    agent: Word | None = None
    limit: Annotated[int, Field(ge=1, le=200)] = 50


class TicketQuery(Page):
    number: Annotated[str | None, Field(pattern=r"^[0-9]{8}-[0-9]{6}$")] = None
    caller: Annotated[
        NumberText | None, Field(description="The whole number; for those who may look for it.")
    ] = None
    status: TicketStatus | None = None
    after: Annotated[str | None, Field(pattern=r"^[0-9]{8}-[0-9]{6}$")] = None

    @model_validator(mode="after")
    def _number_alone(self) -> Self:
        if self.number is not None and len(self.model_fields_set) > 1:
            raise ValueError("number names one ticket; give no other filter with it")
        return self


class RecordQuery(Page):
    after: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")] = None


class Rest:
    def __init__(
        self,
        *,
        desk: Desk,
        console: Console,
        pages: Pages,
        tickets: TicketReader,
        recordings: RecordingsPort,
        health: Health,
        figures: Figures,
        audit: Audit,
        gate: GatePort,
        sip_address: str,
        demo: bool,
    ) -> None:
        self._desk = desk
        self._console = console
        self._pages = pages
        self._tickets = tickets
        self._recordings = recordings
        self._health = health
        self._figures = figures
        self._audit = audit
        self._gate = gate
        self._login_slots = asyncio.Semaphore(_LOGINS_AT_ONCE)
        self._logins_waiting = 0
        self._hearings: OrderedDict[tuple[UserId, CallId, str], float] = OrderedDict()
        self._sip_address = sip_address
        self._demo = demo
        self._openapi = openapi_document(contracts(), version=VERSION)
        self._wire = wire_document()

    # --- session --------------------------------------------------------------------------------------------

    @route("POST", "/api/v1/session", summary="Log in", login=False, problems=(401, 403, 429, 503))
    async def log_in(self, body: LoginBody, request: web.Request) -> SessionView:
        source = request.remote or ""
        if (wait := self._gate.wait_seconds(source)) is not None:
            self._figures.login_refused("banned")
            raise Problem(
                429, Fault.TOO_MANY, "this address", headers={hdrs.RETRY_AFTER: str(math.ceil(wait))}
            )
        try:
            async with self._login_turn():
                session = await self._desk.accounts.log_in(body.user, body.password, client=source)
        except LoginRefused as refused:
            self._figures.login_refused(refused.reason.value)
            self._gate.attempt(Attempt(Door.WEB, source, body.user, _FAULTS[refused.reason]))
            raise _login_problem(refused) from refused
        await self._desk.refresh()
        viewer = Viewer.of(session.user_id, session.roles)
        return SessionView(
            token=session.token,
            user=self._desk.person(session.user_id),
            roles=sorted(viewer.roles),
            rights=sorted(viewer.rights),
            expires_at=session.expires_at,
        )

    @route("DELETE", "/api/v1/session", summary="Log out; screens of this session close")
    async def log_out(self, request: web.Request) -> NothingView:
        token = bearer(request)
        await self._desk.accounts.log_out(token)
        self._console.revoke(token)
        return NothingView()

    @route("GET", "/api/v1/me", summary="Who I am and what I may do")
    async def me(self, login: Login) -> MeView:
        await self._desk.refresh()
        return self._desk.me(login)

    @route(
        "PUT",
        "/api/v1/me/state",
        summary="Be ready, not ready or logged out",
        right=Right.TELEPHONE,
        problems=(409,),
    )
    async def set_state(self, login: Login, body: StateBody) -> MeView:
        await self._desk.ask(login.viewer, body.request(login.viewer.user_id))
        return self._desk.me(login)

    # --- calls ----------------------------------------------------------------------------------------------

    @route("GET", "/api/v1/calls", summary="Living calls I may see", right=Right.SEE_CALLS)
    async def calls(self, viewer: Viewer) -> CallsView:
        living = [call for call in self._desk.engine.calls.values() if call.phase is not Phase.ENDED]
        return CallsView(calls=[self._call_view(call, viewer) for call in living if viewer.sees(call)])

    @route(
        "GET",
        "/api/v1/calls/{call_id}",
        summary="A call, living or ended",
        right=Right.SEE_CALLS,
    )
    async def call(self, viewer: Viewer, call_id: str) -> CallView:
        return self._call_view(await self._find(CallId(call_id), viewer), viewer)

    async def ask_of_call(self, viewer: Viewer, call_id: str, body: CallBody) -> DoneView:
        await self._desk.ask(viewer, body.request(viewer.user_id, CallId(call_id)))
        call = self._desk.engine.calls.get(CallId(call_id))
        return DoneView(call=self._call_view(call, viewer) if call and viewer.sees(call) else None)

    @route(
        "GET",
        "/api/v1/call-records",
        summary="Calls from the database, abandoned ones too",
        right=Right.SEE_CALLS,
    )
    async def call_records(self, viewer: Viewer, query: RecordQuery) -> CallRecordsView:
        agent = UserId(query.agent) if query.agent else None
        if not viewer.may(Right.SEE_ALL_CALLS):
            if agent not in {None, viewer.user_id}:
                raise Problem(403, Fault.FORBIDDEN, "agent: only your own calls")
            agent = viewer.user_id
        found = await self._tickets.calls(
            line=query.line,
            agent=agent,
            since=query.since,
            until=query.until,
            limit=query.limit + 1,
            after=CallId(query.after) if query.after else None,
        )
        shown, more = found[: query.limit], len(found) > query.limit
        await self._desk.refresh()
        return CallRecordsView(
            calls=[self._call_view(call, viewer) for call in shown if viewer.sees(call)],
            next=shown[-1].call_id if more else None,
        )

    # --- tickets and recordings -----------------------------------------------------------------------------

    @route("GET", "/api/v1/tickets", summary="Tickets", right=Right.SEE_TICKETS)
    async def tickets(self, viewer: Viewer, query: TicketQuery) -> TicketsView:
        if query.caller is not None and not viewer.may(Right.FIND_BY_NUMBER):
            raise Problem(403, Fault.FORBIDDEN, f"caller: needs the right {Right.FIND_BY_NUMBER.value}")
        await self._desk.refresh()
        if query.number is not None:
            one = await self._tickets.ticket(query.number)
            return TicketsView(tickets=[self._ticket_line(one, viewer)] if one else [], next=None)
        found = await self._tickets.tickets(
            line=query.line,
            caller=query.caller,
            agent=UserId(query.agent) if query.agent else None,
            status=query.status,
            since=query.since,
            until=query.until,
            limit=query.limit + 1,
            after=query.after,
        )
        shown, more = found[: query.limit], len(found) > query.limit
        return TicketsView(
            tickets=[self._ticket_line(ticket, viewer) for ticket in shown],
            next=shown[-1].number if more else None,
        )

    @route(
        "GET",
        "/api/v1/tickets/{number}",
        summary="A ticket with its call and recordings",
        right=Right.SEE_TICKETS,
    )
    async def ticket(self, viewer: Viewer, number: str) -> TicketView:
        ticket = await self._tickets.ticket(number)
        if ticket is None:
            raise Problem(404, Fault.NO_SUCH_TICKET, number)
        await self._desk.refresh()
        return ticket_view(
            ticket,
            sees_number=viewer.sees_number_of(ticket.call),
            hears=viewer.hears(ticket.call),
            name_of=self._desk.name_of,
        )

    @route(
        "GET",
        "/api/v1/calls/{call_id}/recordings",
        summary="The recordings of a call",
        right=Right.SEE_CALLS,
    )
    async def recordings(self, viewer: Viewer, call_id: str) -> RecordingsView:
        call = await self._find(CallId(call_id), viewer)
        if not viewer.hears(call):
            raise Problem(403, Fault.FORBIDDEN, "recordings: only of calls you handled")
        files = await self._tickets.recordings(call.call_id)
        return RecordingsView(recordings=[recording_view(file, call) for file in files])

    @route(
        "GET",
        "/api/v1/recordings/{call_id}/{name}",
        summary="Play a recording; takes Range",
        right=Right.SEE_CALLS,
        media="audio/flac",
        problems=(416,),
    )
    async def recording(
        self, viewer: Viewer, call_id: str, name: str, request: web.Request
    ) -> web.StreamResponse:
        call = await self._find(CallId(call_id), viewer)
        if not viewer.hears(call):
            raise Problem(403, Fault.FORBIDDEN, "recordings: only of calls you handled")
        files = await self._tickets.recordings(call.call_id)
        file = next((each for each in files if recording_name(each) == name), None)
        if file is None:
            raise Problem(404, Fault.NO_SUCH_RECORDING, name)
        try:
            path = await asyncio.to_thread(self._recordings.open, file.path)
        except NoSuchRecording as error:
            raise Problem(404, Fault.NO_SUCH_RECORDING, f"{name}: the file is gone from the store") from error
        await self._note_hearing(viewer.user_id, call.call_id, name)
        return _Sound(path, content_type=_TYPES.get(file.codec, "application/octet-stream"))

    # --- people, queues, words ------------------------------------------------------------------------------

    @route("GET", "/api/v1/agents", summary="Everybody at the telephones", right=Right.SEE_COLLEAGUES)
    async def agents(self) -> AgentsView:
        now = self._desk.now()
        return AgentsView(agents=[agent_view(agent, now=now) for agent in self._desk.engine.agents.values()])

    @route("GET", "/api/v1/queues", summary="The queues as they stand", right=Right.SEE_COLLEAGUES)
    async def queues(self) -> QueuesView:
        return QueuesView(queues=self._desk.queue_views())

    @route("GET", "/api/v1/directory", summary="What there is to choose from: reasons, people, numbers")
    async def directory(self, viewer: Viewer) -> DirectoryView:
        await self._desk.refresh()
        return self._desk.directory_view(viewer)

    @route(
        "GET",
        "/api/v1/reports/invitations",
        summary="How three-party attempts ended; the last 30 days unless told",
        right=Right.SEE_REPORTS,
    )
    async def invitations(self, query: Window) -> InvitationsView:
        until = query.until or self._desk.now().utc
        since = query.since or until - timedelta(days=30)
        counts = await self._tickets.invitation_outcomes(since=since, until=until)
        return InvitationsView(
            since=since,
            until=until,
            total=sum(counts.values()),
            outcomes=[OutcomeCountView(outcome=outcome, count=counts.get(outcome, 0)) for outcome in Outcome],
        )

    # --- for everybody --------------------------------------------------------------------------------------

    @route(
        "GET",
        "/healthz",
        summary="Whether everything works; 503 when something is down",
        login=False,
        answers={503: HealthView},
    )
    async def healthz(self) -> HealthView | web.StreamResponse:
        view = await self._health.view()
        return view if view.standing is not Standing.DOWN else json_response(view, status=503)

    @route("GET", "/metrics", summary="Figures for Prometheus", login=False, media="text/plain")
    async def metrics(self) -> web.StreamResponse:
        text = self._figures.text(await self._health.view())
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_LATEST})

    @route("GET", "/api/v1/openapi.json", summary="This interface, described", login=False)
    async def openapi(self) -> web.StreamResponse:
        return web.json_response(self._openapi)

    @route("GET", "/api/v1/wire.json", summary="The console's messages as JSON Schema", login=False)
    async def wire(self) -> web.StreamResponse:
        return web.json_response(self._wire)

    @route(
        "GET",
        "/",
        summary="The console; the page about this system where none is built",
        login=False,
        media="text/html",
    )
    async def start(self, request: web.Request) -> web.StreamResponse:
        return self._pages.index(request) or await self.home(request)

    @route("GET", "/about", summary="What runs here, for people", login=False, media="text/html")
    async def home(self, request: web.Request) -> web.StreamResponse:
        text = home_page(
            health=await self._health.view(),
            sip_address=self._sip_address,
            demo=self._demo,
            version=VERSION,
            host=request.host,
        )
        return web.Response(text=text, content_type="text/html")

    @route("GET", "/home.css", summary="How that page looks", login=False, media="text/css")
    async def home_style(self) -> web.StreamResponse:
        return web.Response(text=home_style(), content_type="text/css")

    # --- how it is done -------------------------------------------------------------------------------------

    def routes(self) -> list[Route]:
        return [*routes_of(self), *(Route(contract, self.ask_of_call) for contract in _call_contracts())]

    async def _find(self, call_id: CallId, viewer: Viewer) -> Call:
        """The call, living or from the database; one that is not the viewer's is not there."""
        call = await self._desk.call(call_id)
        if call is None or not viewer.sees(call):
            raise Problem(404, Reason.NO_SUCH_CALL, call_id)
        await self._desk.refresh()
        return call

    @asynccontextmanager
    async def _login_turn(self) -> AsyncIterator[None]:
        """Checking a password takes a tenth of a second of a core: a flood of logins must not starve the calls."""
        busy = Problem(429, Fault.TOO_MANY, "many logins at once", headers={hdrs.RETRY_AFTER: "2"})
        if self._logins_waiting >= _LOGINS_WAITING:
            self._figures.login_refused("flood")
            raise busy
        self._logins_waiting += 1
        try:
            async with asyncio.timeout(_LOGIN_TURN_SECONDS):
                await self._login_slots.acquire()
        except TimeoutError:
            self._figures.login_refused("flood")
            raise busy from None
        finally:
            self._logins_waiting -= 1
        try:
            yield
        finally:
            self._login_slots.release()

    async def _note_hearing(self, user_id: UserId, call_id: CallId, name: str) -> None:
        """Nobody hears a citizen without a trace; a player's many ranges within ten minutes are one hearing."""
        now = asyncio.get_running_loop().time()
        hearing = (user_id, call_id, name)
        if now - self._hearings.get(hearing, float("-inf")) < _ONE_HEARING_SECONDS:
            return
        await self._audit(user_id, "recording_played", call_id, name)
        self._hearings[hearing] = now
        self._hearings.move_to_end(hearing)
        if len(self._hearings) > _HEARINGS_REMEMBERED:
            self._hearings.popitem(last=False)

    def _call_view(self, call: Call, viewer: Viewer) -> CallView:
        return call_view(call, sees_number=viewer.sees_number_of(call), name_of=self._desk.name_of)

    def _ticket_line(self, ticket: Ticket, viewer: Viewer) -> TicketLineView:
        return ticket_line_view(
            ticket, sees_number=viewer.sees_number_of(ticket.call), name_of=self._desk.name_of
        )


def _call_contracts() -> list[Contract]:
    """One route for every command on a call."""
    return [
        contract_of(
            Rest.ask_of_call,
            method="POST",
            path=f"/api/v1/calls/{{call_id}}/{word}",
            summary=(body.__doc__ or "").strip(),
            right=Right.TELEPHONE,
            problems=(409,),
            body=body,
        )
        for word, body in CALL_BODIES.items()
    ]


def contracts() -> list[Contract]:
    """Everything the API promises."""
    return [*contracts_of(Rest), *contracts_of(Softphone), *contracts_of(Forms), *_call_contracts()]


def bearer(request: web.Request) -> str:
    """The session token of a request; empty when there is none. Never from the address: addresses are logged."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    return token.strip()[:256] if scheme.lower() == "bearer" else ""


_FAULTS = {
    LoginReason.WRONG: guard.Fault.WRONG_PASSWORD,
    LoginReason.LOCKED: guard.Fault.NOT_ALLOWED,
    LoginReason.DISABLED: guard.Fault.NOT_ALLOWED,
}


def _login_problem(refused: LoginRefused) -> Problem:
    match refused.reason:
        case LoginReason.WRONG:
            return Problem(401, Fault.WRONG_LOGIN)
        case LoginReason.DISABLED:
            return Problem(403, Fault.LOGIN_DISABLED)
        case LoginReason.LOCKED:
            seconds = max(1, math.ceil(refused.retry_after or 1))
            return Problem(
                429, Fault.LOGIN_LOCKED, f"wait {seconds} s", headers={hdrs.RETRY_AFTER: str(seconds)}
            )
        case _:
            assert_never(refused.reason)


class _Sound(web.FileResponse):
    """A sound file with ranges.

    aiohttp compares an If-Range date but passes over an If-Range tag (RFC 9110 section 13.1.5): a player that
    resumes with the tag of another file would be given a mixture of both.
    """

    def __init__(self, path: Path, *, content_type: str) -> None:
        super().__init__(path, headers={hdrs.CONTENT_TYPE: content_type, hdrs.CONTENT_DISPOSITION: "inline"})
        self._sound = path

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        wanted = request.headers.get(hdrs.IF_RANGE, "")
        if wanted.startswith(('"', "W/")):
            facts = await asyncio.to_thread(self._sound.stat)
            if wanted != f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"':
                headers = request.headers.copy()
                headers.popall(hdrs.RANGE, None)
                return await super().prepare(request.clone(headers=headers))
        return await super().prepare(request)
