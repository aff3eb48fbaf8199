"""The web server: everything of ``api`` put together, its headers, its limits, and one shape for every no."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import hdrs, web

from callcenter.api.console import Console, Limits
from callcenter.api.desk import Desk
from callcenter.api.figures import Figures, Health
from callcenter.api.forms import Forms
from callcenter.api.pages import Pages
from callcenter.api.ports import (
    AccountsPort,
    Audit,
    DirectoryPort,
    EnginePort,
    FormsPort,
    GatePort,
    HealthSource,
    PhonesPort,
    RecordingsPort,
    TicketReader,
)
from callcenter.api.rest import Rest, bearer
from callcenter.api.rights import Login
from callcenter.api.softphone import Softphone
from callcenter.api.typed import Problem, install, problem_response, routes_of
from callcenter.api.words import Fault
from callcenter.database import DatabaseAway
from callcenter.domain.calls import Now

BODY_BYTES = 64 * 1024

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_HTTP_FAULTS = {
    404: Fault.NOT_FOUND,
    405: Fault.METHOD_NOT_ALLOWED,
    413: Fault.TOO_LARGE,
}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    hdrs.SERVER: "callcenter",
}
_NOTHING = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
"""Nothing of the API is a document; the page about the system needs its own style sheet and nothing else."""


def wall_clock() -> Now:
    """Both clocks of this machine."""
    return Now(time.monotonic(), datetime.now(UTC))


def build_app(
    *,
    engine: EnginePort,
    accounts: AccountsPort,
    directory: DirectoryPort,
    tickets: TicketReader,
    recordings: RecordingsPort,
    health: HealthSource,
    audit: Audit,
    phones: PhonesPort,
    forms: FormsPort,
    gate: GatePort,
    softphone_ports: tuple[int, int] = (8088, 8089),
    console: Path | None = None,
    clock: Callable[[], Now] = wall_clock,
    limits: Limits | None = None,
    origins: Iterable[str] = (),
    ask_seconds: float = 2.0,
    deadline_seconds: float = 10.0,
    sip_address: str = "127.0.0.1:5060",
    demo: bool = False,
) -> web.Application:
    """The application, ready for an ``AppRunner`` (with ``handler_cancellation`` off, as is aiohttp's default).

    ``clock`` must be the engine's; ``origins`` are further pages (``https://desk.example``) that may open a console;
    ``ask_seconds`` bounds a command, ``deadline_seconds`` any other request. ``console`` is where the built console lies,
    ``softphone_ports`` where Asterisk speaks ws and wss.
    """
    limits = limits or Limits()
    # The counts of screens are known to the console, which is built on what counts them.
    figures = Figures(engine=engine, health=health, screens=lambda: screens.count())
    desk = Desk(
        engine=engine,
        accounts=accounts,
        directory=directory,
        tickets=tickets,
        figures=figures,
        clock=clock,
        ask_seconds=ask_seconds,
    )
    screens = Console(desk=desk, figures=figures, limits=limits, origins=frozenset(origins))
    pages = Pages(console, softphone_ports=softphone_ports)
    rest = Rest(
        desk=desk,
        console=screens,
        pages=pages,
        tickets=tickets,
        recordings=recordings,
        health=Health(health, deadline_seconds=3.0),
        figures=figures,
        audit=audit,
        gate=gate,
        sip_address=sip_address,
        demo=demo,
    )

    async def who_asks(request: web.Request) -> Login:
        token = bearer(request)
        login = await desk.login(token) if token else None
        if login is None:
            raise Problem(401, Fault.NOT_LOGGED_IN, headers={hdrs.WWW_AUTHENTICATE: "Bearer"})
        return login

    async def running(_app: web.Application) -> AsyncIterator[None]:
        await desk.refresh()
        lag = asyncio.create_task(figures.watch_the_loop(), name="event-loop-lag")
        try:
            async with screens.listening():
                yield
        finally:
            lag.cancel()
            with suppress(asyncio.CancelledError):
                await lag

    async def going_down(_app: web.Application) -> None:
        screens.close_all()

    app = web.Application(middlewares=[_one_shape], client_max_size=BODY_BYTES)
    softphone = Softphone(desk=desk, phones=phones, ports=softphone_ports)
    ticket_forms = Forms(desk=desk, tickets=tickets, forms=forms)
    install(
        app,
        [*rest.routes(), *routes_of(softphone), *routes_of(ticket_forms)],
        who_asks=who_asks,
        deadline_seconds=deadline_seconds,
    )
    app.router.add_routes(pages.routes())
    app.router.add_get("/api/v1/console", screens.serve, allow_head=False)
    app.on_response_prepare.append(_add_headers)
    app.on_shutdown.append(going_down)
    app.cleanup_ctx.append(running)
    return app


@web.middleware
async def _one_shape(request: web.Request, handler: _Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return problem_response(problem)
    except DatabaseAway:
        return problem_response(
            Problem(503, Fault.STORE_AWAY, "the database is away", headers={hdrs.RETRY_AFTER: "5"})
        )
    except web.HTTPException as error:
        if error.status < 400:
            raise
        fault = _HTTP_FAULTS.get(error.status, Fault.REFUSED_BY_SERVER)
        headers = {"Allow": error.headers[hdrs.ALLOW]} if hdrs.ALLOW in error.headers else None
        return problem_response(Problem(error.status, fault, error.reason, headers=headers))


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers[name] = value
    # The console's own page says itself what it needs.
    response.headers.setdefault("Content-Security-Policy", _NOTHING)
    if request.path.startswith("/api/"):
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
