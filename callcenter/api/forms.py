"""The ticket form beside the call, what its words are, and what the same caller asked before."""

from datetime import date
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from callcenter.api.desk import Desk
from callcenter.api.ports import FormsPort, TicketReader
from callcenter.api.rights import Right, Viewer, masked
from callcenter.api.typed import Problem, Query, route
from callcenter.api.views import (
    CategoryView,
    EarlierView,
    FormKindView,
    FormSpecView,
    FormView,
    HistoryView,
)
from callcenter.api.wire import Message, printable
from callcenter.api.words import Fault
from callcenter.domain.calls import CallId
from callcenter.domain.messages import Reason
from callcenter.tickets.forms import CURRENT, Category, Changed, Form, Kept, spec
from callcenter.tickets.store import Ticket

_EARLIER = 10


class FormBody(Message):
    """The whole form as it stands on the screen, and the version it was read with."""

    version: Annotated[int, Field(ge=0)]
    spec_version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")] = CURRENT
    kind: Annotated[str, StringConstraints(max_length=20), AfterValidator(printable)] = ""
    title: Annotated[str, StringConstraints(max_length=200), AfterValidator(printable)] = ""
    content: Annotated[str, StringConstraints(max_length=8000), AfterValidator(printable)] = ""
    category: Annotated[str, StringConstraints(pattern=r"^[0-9]{0,12}$")] = ""
    region: Annotated[str, StringConstraints(max_length=200), AfterValidator(printable)] = ""
    address: Annotated[str, StringConstraints(max_length=300), AfterValidator(printable)] = ""
    occurred_on: date | None = None
    contact_name: Annotated[str, StringConstraints(max_length=80), AfterValidator(printable)] = ""
    contact_phone: Annotated[str, StringConstraints(max_length=40), AfterValidator(printable)] = ""
    confidential: bool = False
    reply: Annotated[str, StringConstraints(max_length=8000), AfterValidator(printable)] = ""

    def form(self) -> Form:
        return Form(**self.model_dump(exclude={"version"}))


class SpecQuery(Query):
    version: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")] = CURRENT


class Forms:
    def __init__(self, *, desk: Desk, tickets: TicketReader, forms: FormsPort) -> None:
        self._desk = desk
        self._tickets = tickets
        self._forms = forms

    @route(
        "GET",
        "/api/v1/ticket-form",
        summary="Kinds of request and categories",
        right=Right.SEE_TICKETS,
        problems=(404,),
    )
    async def words(self, query: SpecQuery) -> FormSpecView:
        try:
            words = spec(query.version)
        except KeyError:
            raise Problem(404, Fault.NOT_FOUND, f"version {query.version}") from None
        return FormSpecView(
            version=words.version,
            kinds=[
                FormKindView(code=kind.code, zh=kind.zh, en=kind.en, required=list(kind.required))
                for kind in words.kinds
            ],
            categories=[_category_view(each) for each in words.categories],
        )

    @route("GET", "/api/v1/tickets/{number}/form", summary="What is written so far", right=Right.SEE_TICKETS)
    async def read(self, viewer: Viewer, number: str) -> FormView:
        ticket = await self._ticket(number)
        return self._view(number, await self._forms.read(number), ticket, viewer)

    @route(
        "PUT",
        "/api/v1/tickets/{number}/form",
        summary="Keep what is written; as often as there is something new",
        right=Right.SEE_TICKETS,
        problems=(409,),
    )
    async def write(self, viewer: Viewer, number: str, body: FormBody) -> FormView:
        ticket = await self._ticket(number)
        if viewer.user_id not in {ticket.call.answered_by, *ticket.call.handled_by}:
            raise Problem(403, Fault.FORBIDDEN, "only who talked with the caller writes the form")
        form = body.form()
        try:
            wrong = form.problems()
        except KeyError:
            wrong = ("spec_version",)
        if wrong:
            raise Problem(400, Fault.BAD_REQUEST, f"{', '.join(wrong)}: no such code in this version")
        try:
            kept = await self._forms.write(
                number, form, onto=body.version, by=viewer.user_id, at=self._desk.now().utc
            )
        except Changed as changed:
            raise Problem(409, Fault.FORM_CHANGED, f"version {changed.kept.version} is there") from changed
        return self._view(number, kept, ticket, viewer)

    @route(
        "GET",
        "/api/v1/calls/{call_id}/history",
        summary="Earlier tickets of the caller of this call",
        right=Right.SEE_TICKETS,
    )
    async def history(self, viewer: Viewer, call_id: str) -> HistoryView:
        call = await self._desk.call(CallId(call_id))
        if call is None or not viewer.sees(call):
            raise Problem(404, Reason.NO_SUCH_CALL, call_id)
        if not call.caller:
            return HistoryView(tickets=[])  # a withheld number is everybody's
        found = await self._tickets.tickets(caller=call.caller, limit=_EARLIER + 1)
        earlier = [ticket for ticket in found if ticket.call.call_id != call.call_id][:_EARLIER]
        kept = await self._forms.read_many([ticket.number for ticket in earlier])
        await self._desk.refresh()
        return HistoryView(tickets=[self._earlier(ticket, kept.get(ticket.number)) for ticket in earlier])

    async def _ticket(self, number: str) -> Ticket:
        ticket = await self._tickets.ticket(number)
        if ticket is None:
            raise Problem(404, Fault.NO_SUCH_TICKET, number)
        await self._desk.refresh()
        return ticket

    def _view(self, number: str, kept: Kept, ticket: Ticket, viewer: Viewer) -> FormView:
        form = kept.form
        phone = form.contact_phone
        return FormView(
            number=number,
            version=kept.version,
            spec_version=form.spec_version,
            kind=form.kind,
            title=form.title,
            content=form.content,
            category=form.category,
            region=form.region,
            address=form.address,
            occurred_on=form.occurred_on,
            contact_name=form.contact_name,
            contact_phone=phone if viewer.sees_number_of(ticket.call) else masked(phone),
            confidential=form.confidential,
            reply=form.reply,
            missing=list(form.missing()),
            saved_at=kept.saved_at,
            saved_by=self._desk.person(kept.saved_by) if kept.saved_by else None,
        )

    def _earlier(self, ticket: Ticket, kept: Kept | None) -> EarlierView:
        form = kept.form if kept else Form()
        return EarlierView(
            number=ticket.number,
            status=ticket.status,
            line=ticket.line,
            opened_at=ticket.opened_at,
            agent=self._desk.person(ticket.agent) if ticket.agent else None,
            kind=form.kind,
            title=form.title,
            category=form.category,
            disposition=ticket.disposition,
            note=ticket.note,
            rating=ticket.rating,
        )


def _category_view(category: Category) -> CategoryView:
    return CategoryView(
        code=category.code,
        zh=category.zh,
        en=category.en,
        parts=[_category_view(part) for part in category.parts],
    )
