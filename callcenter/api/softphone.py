"""The telephone in the browser: who chooses it gets a SIP account that is his alone and lasts as long as his login."""

import secrets

from aiohttp import web

from callcenter.api.desk import Desk
from callcenter.api.ports import PhonesPort
from callcenter.api.rights import Login, Right
from callcenter.api.typed import Problem, route
from callcenter.api.views import NothingView, SoftphoneView
from callcenter.asterisk.ami import AmiError
from callcenter.domain.messages import Reason


class Softphone:
    def __init__(self, *, desk: Desk, phones: PhonesPort, ports: tuple[int, int]) -> None:
        self._desk = desk
        self._phones = phones
        self._ws_port, self._wss_port = ports

    @route(
        "POST",
        "/api/v1/me/softphone",
        summary="Telephone in this browser from now on: the account to register, with a password made for this once",
        right=Right.TELEPHONE,
        problems=(409, 503),
    )
    async def take(self, login: Login, request: web.Request) -> SoftphoneView:
        number = self._number_of(login)
        password = secrets.token_urlsafe(24)
        try:
            user = await self._phones.use_browser(number, password)
        except AmiError as error:
            raise Problem(503, Reason.TELEPHONY_DOWN, type(error).__name__) from error
        host = request.url.host or "127.0.0.1"
        shown = f"[{host}]" if ":" in host else host
        scheme, port = ("wss", self._wss_port) if request.secure else ("ws", self._ws_port)
        return SoftphoneView(
            number=number,
            user=user,
            password=password,
            uri=f"sip:{user}@{shown}",
            websocket=f"{scheme}://{shown}:{port}/ws",
            expires_at=login.expires_at,
        )

    @route(
        "DELETE",
        "/api/v1/me/softphone",
        summary="Telephone with the desk phone again",
        right=Right.TELEPHONE,
        problems=(409, 503),
    )
    async def leave(self, login: Login) -> NothingView:
        try:
            await self._phones.use_desk_phone(self._number_of(login))
        except AmiError as error:
            raise Problem(503, Reason.TELEPHONY_DOWN, type(error).__name__) from error
        return NothingView()

    def _number_of(self, login: Login) -> str:
        agent = self._desk.engine.agents.get(login.viewer.user_id)
        if agent is None or agent.profile.phone is None:
            raise Problem(409, Reason.NO_PHONE)
        return agent.profile.phone
