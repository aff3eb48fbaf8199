"""What REST and the screens share: who asks, the names and words people know, and the way to the centre."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from callcenter.api.figures import Figures
from callcenter.api.ports import AccountsPort, ContentInfo, DirectoryPort, EnginePort, TicketReader
from callcenter.api.rights import Login, Right, Viewer
from callcenter.api.typed import Problem
from callcenter.api.views import (
    ChoiceView,
    DirectoryView,
    MeView,
    NumberView,
    PersonView,
    QueueView,
    agent_view,
    person_view,
    queue_name_view,
    queue_view,
    specialist_view,
)
from callcenter.api.words import Fault
from callcenter.database import DatabaseAway
from callcenter.domain.agents import UserRole
from callcenter.domain.calls import Call, CallId, Now, UserId
from callcenter.domain.messages import Refused, Request

_CONTENT_SECONDS = 5.0
_ENDED_AT_HAND = 1000


class Desk:
    def __init__(
        self,
        *,
        engine: EnginePort,
        accounts: AccountsPort,
        directory: DirectoryPort,
        tickets: TicketReader,
        figures: Figures,
        clock: Callable[[], Now],
        ask_seconds: float,
    ) -> None:
        self.engine = engine
        self.accounts = accounts
        self.now = clock
        self._directory = directory
        self._tickets = tickets
        self._figures = figures
        self._ask_seconds = ask_seconds
        self._content: ContentInfo | None = None
        self._content_until = float("-inf")
        self._names: dict[UserId, str] = {}
        self._ended: OrderedDict[CallId, Call] = OrderedDict()

    async def login(self, token: str) -> Login | None:
        """Whose session this is; None when it is over. DatabaseAway."""
        session = await self.accounts.session(token)
        if session is None:
            return None
        return Login(Viewer.of(session.user_id, session.roles), session.expires_at)

    async def ask(self, viewer: Viewer, request: Request) -> None:
        """Ask the centre on the viewer's behalf; what it refuses comes as ``Problem``."""
        if not viewer.may(Right.TELEPHONE):
            self._figures.command(Fault.FORBIDDEN.value)
            raise Problem(403, Fault.FORBIDDEN, f"needs the right {Right.TELEPHONE.value}")
        try:
            async with asyncio.timeout(self._ask_seconds):
                await self.engine.ask(request)
        except Refused as refused:
            self._figures.command(refused.reason.value)
            raise Problem(409, refused.reason, refused.detail) from refused
        except TimeoutError:
            self._figures.command(Fault.ENGINE_BUSY.value)
            raise Problem(503, Fault.ENGINE_BUSY, f"no answer within {self._ask_seconds:g} s") from None
        self._figures.command("done")

    # --- calls ----------------------------------------------------------------------------------------------

    def call_ended(self, call: Call) -> None:
        """Keep it at hand: it is being wrapped up and may not be in the database yet."""
        self._ended[call.call_id] = call
        self._ended.move_to_end(call.call_id)
        if len(self._ended) > _ENDED_AT_HAND:
            self._ended.popitem(last=False)

    async def call(self, call_id: CallId) -> Call | None:
        """The call wherever it is now. DatabaseAway when it may be in the database only."""
        return self.engine.calls.get(call_id) or self._ended.get(call_id) or await self._tickets.call(call_id)

    # --- people and words -----------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Read the directory again when what is known is some seconds old; the old stays while the database is away."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._content_until:
            return
        # Set first: while one reads, the others go on with what is known.
        self._content_until = loop.time() + _CONTENT_SECONDS
        try:
            self._content = await self._directory.load()
        except DatabaseAway:
            return
        self._names = {profile.user_id: profile.name for profile in self._content.profiles}

    def name_of(self, user_id: UserId) -> str:
        agent = self.engine.agents.get(user_id)
        return agent.profile.name if agent else self._names.get(user_id, user_id)

    def person(self, user_id: UserId) -> PersonView:
        return person_view(user_id, name_of=self.name_of)

    def me(self, login: Login) -> MeView:
        viewer = login.viewer
        own = self.engine.agents.get(viewer.user_id)
        return MeView(
            user_id=viewer.user_id,
            name=self.name_of(viewer.user_id),
            roles=sorted(viewer.roles),
            rights=sorted(viewer.rights),
            expires_at=login.expires_at,
            agent=own and agent_view(own, now=self.now()),
        )

    def directory_view(self, viewer: Viewer) -> DirectoryView:
        """The words to choose from, and for those who telephone the people and queues to call."""
        content = self._content
        colleagues = viewer.may(Right.SEE_COLLEAGUES)
        return DirectoryView(
            not_ready_reasons=[
                ChoiceView(code=each.code, zh=each.zh, en=each.en)
                for each in (content.not_ready_reasons if content else ())
            ],
            dispositions=[
                ChoiceView(code=each.code, zh=each.zh, en=each.en)
                for each in (content.dispositions if content else ())
            ],
            allowed_numbers=[
                NumberView(number=each.number, zh=each.zh, en=each.en)
                for each in (content.allowed_numbers if content else ())
            ],
            specialists=[
                specialist_view(agent)
                for agent in self.engine.agents.values()
                if colleagues and UserRole.SPECIALIST in agent.profile.roles
            ],
            queues=[queue_name_view(queue) for queue in self.engine.queues.values()] if colleagues else [],
        )

    def queue_views(self) -> list[QueueView]:
        loads = {load.queue_id: load for load in self.engine.queue_status()}
        now = self.now()
        return [
            queue_view(queue, loads.get(queue_id), now=now) for queue_id, queue in self.engine.queues.items()
        ]
