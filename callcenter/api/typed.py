"""The small typed layer over aiohttp: a handler's own annotations are its contract.

``@route`` reads the parameters of a handler: ``body`` and ``query`` are pydantic models and are validated before it
runs, ``viewer`` is who is logged in, ``login`` his session, ``request`` the raw request, every other one a part of the path. What it
returns is validated by being a model. The OpenAPI document is made from the same declarations.
"""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_type_hints

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.json_schema import models_json_schema

from callcenter.api.rights import Login, Right
from callcenter.api.views import ProblemView
from callcenter.api.wire import what_is_wrong
from callcenter.api.words import SENTENCES, Fault
from callcenter.domain.messages import Reason

Handler = Callable[..., Awaitable[BaseModel | web.StreamResponse]]
HandlerT = TypeVar("HandlerT", bound=Handler)

PATH_PATTERNS: Mapping[str, str] = {
    "call_id": r"[A-Za-z0-9._-]{1,80}",
    "number": r"[0-9]{8}-[0-9]{6}",
    "name": r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}",
}
"""What a part of a path may look like; anything else is an address that does not exist."""


class Query(BaseModel):
    """What may stand behind the question mark of an address."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)


class Problem(Exception):  # noqa: N818 - an expected "no", answered to the client, is no error of the program
    """The request is answered with this status and the sentences of its reason."""

    def __init__(
        self,
        status: int,
        reason: Reason | Fault,
        detail: str = "",
        *,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{status} {reason.value}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})


def problem_view(reason: Reason | Fault, detail: str) -> ProblemView:
    sentence = SENTENCES[reason]
    return ProblemView.model_validate(
        {
            "error": {
                "reason": reason.value,
                "message_zh": sentence.zh,
                "message_en": sentence.en,
                "detail": detail,
            }
        }
    )


def problem_response(problem: Problem) -> web.Response:
    response = json_response(problem_view(problem.reason, problem.detail), status=problem.status)
    response.headers.update(problem.headers)
    return response


def json_response(view: BaseModel, *, status: int = 200) -> web.Response:
    return web.Response(text=view.model_dump_json(), content_type="application/json", status=status)


@dataclass(frozen=True, slots=True)
class Contract:
    """What a route promises; attached to its handler by ``@route``."""

    method: str
    path: str
    summary: str
    right: Right | None
    login: bool
    status: int
    body: type[BaseModel] | None
    query: type[BaseModel] | None
    result: type[BaseModel] | None
    media: str
    parts: tuple[str, ...]
    problems: tuple[int, ...]
    answers: Mapping[int, type[BaseModel]]
    """Other statuses that are answers, not problems."""


@dataclass(frozen=True, slots=True)
class Route:
    contract: Contract
    handler: Handler


def contract_of(
    handler: Handler,
    *,
    method: str,
    path: str,
    summary: str,
    right: Right | None = None,
    login: bool = True,
    status: int = 200,
    media: str = "application/json",
    problems: Iterable[int] = (),
    answers: Mapping[int, type[BaseModel]] | None = None,
    body: type[BaseModel] | None = None,
) -> Contract:
    hints = get_type_hints(handler)
    parameters = set(inspect.signature(handler).parameters)
    parts = tuple(re.findall(r"\{(\w+)\}", path))
    unknown = parameters - {"self", "body", "query", "viewer", "login", "request", *parts}
    if unknown:
        raise TypeError(
            f"{method} {path}: nothing fills the parameters {sorted(unknown)}; name them in the path"
        )
    returned = hints.get("return")
    result = next((each for each in (returned, *get_args(returned)) if _is_model(each)), None)
    found = set(problems)
    if login:
        found |= {401, 503}  # who asks is looked up in the database
    if right is not None:
        found |= {403}
    if parts:
        found |= {404}
    if "body" in parameters:
        found |= {400, 413}
    if "query" in parameters:
        found |= {400}
    return Contract(
        method=method,
        path=path,
        summary=summary,
        right=right,
        login=login,
        status=status,
        body=body or hints.get("body"),
        query=hints.get("query"),
        result=result,
        media=media,
        parts=parts,
        problems=tuple(sorted(found)),
        answers=answers or {},
    )


def _is_model(hint: object) -> bool:
    return isinstance(hint, type) and issubclass(hint, BaseModel)


def route(
    method: str,
    path: str,
    *,
    summary: str,
    right: Right | None = None,
    login: bool = True,
    status: int = 200,
    media: str = "application/json",
    problems: Iterable[int] = (),
    answers: Mapping[int, type[BaseModel]] | None = None,
) -> Callable[[HandlerT], HandlerT]:
    """Declare a handler's place; ``login=False`` opens it to everybody, ``right=None`` to every logged-in user."""

    def declare(handler: HandlerT) -> HandlerT:
        contract = contract_of(
            handler,
            method=method,
            path=path,
            summary=summary,
            right=right,
            login=login,
            status=status,
            media=media,
            problems=problems,
            answers=answers,
        )
        handler.__contract__ = contract  # type: ignore[attr-defined] # functions carry attributes; mypy has no word for it
        return handler

    return declare


def contracts_of(house: type) -> list[Contract]:
    """Every declared contract of a class, in the order of its body."""
    declared = (getattr(member, "__contract__", None) for member in vars(house).values())
    return [contract for contract in declared if isinstance(contract, Contract)]


def routes_of(house: object) -> list[Route]:
    """Every declared handler of an object, in the order of its class's body."""
    members = ((name, getattr(member, "__contract__", None)) for name, member in vars(type(house)).items())
    return [Route(each, getattr(house, name)) for name, each in members if isinstance(each, Contract)]


WhoAsks = Callable[[web.Request], Awaitable[Login]]
"""The logged-in user of a request, or ``Problem`` 401."""


def install(
    app: web.Application, routes: Iterable[Route], *, who_asks: WhoAsks, deadline_seconds: float
) -> None:
    for each in routes:
        path = re.sub(
            r"\{(\w+)\}", lambda part: f"{{{part[1]}:{PATH_PATTERNS[part[1]]}}}", each.contract.path
        )
        app.router.add_route(
            each.contract.method, path, _endpoint(each, who_asks=who_asks, deadline_seconds=deadline_seconds)
        )


def _endpoint(
    each: Route, *, who_asks: WhoAsks, deadline_seconds: float
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    contract, handler = each.contract, each.handler
    parameters = set(inspect.signature(handler).parameters)

    async def arguments(request: web.Request) -> dict[str, Any]:
        given: dict[str, Any] = {part: request.match_info[part] for part in contract.parts}
        if contract.login:
            login = await who_asks(request)
            if contract.right is not None and not login.viewer.may(contract.right):
                raise Problem(403, Fault.FORBIDDEN, f"needs the right {contract.right.value}")
            given |= {"login": login, "viewer": login.viewer}
        if contract.query is not None:
            given["query"] = _query(contract.query, request)
        if contract.body is not None:
            given["body"] = await _body(contract.body, request)
        given["request"] = request
        return {name: value for name, value in given.items() if name in parameters}

    async def endpoint(request: web.Request) -> web.StreamResponse:
        try:
            async with asyncio.timeout(deadline_seconds):
                result = await handler(**await arguments(request))
        except TimeoutError:
            raise Problem(503, Fault.STORE_AWAY, f"no answer within {deadline_seconds:g} s") from None
        if isinstance(result, web.StreamResponse):
            return result
        return json_response(result, status=contract.status)

    return endpoint


def _query(model: type[BaseModel], request: web.Request) -> BaseModel:
    twice = {name for name in request.query if len(request.query.getall(name)) > 1}
    if twice:
        raise Problem(400, Fault.BAD_REQUEST, f"{', '.join(sorted(twice))[:100]}: give it once")
    try:
        return model.model_validate(dict(request.query))
    except ValidationError as error:
        raise Problem(400, Fault.BAD_REQUEST, what_is_wrong(error)) from error


async def _body(model: type[BaseModel], request: web.Request) -> BaseModel:
    # A command without options may be sent without a body.
    try:
        raw = await request.read() or b"{}"
    except ConnectionResetError as error:  # nobody is there to read it, and it is no fault of ours
        raise Problem(400, Fault.BAD_REQUEST, "the connection ended before the body did") from error
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise Problem(400, Fault.BAD_REQUEST, what_is_wrong(error)) from error


# --- the OpenAPI document ---------------------------------------------------------------------------------------

_REFERENCE = "#/components/schemas/{model}"
_PROBLEM_TEXTS = {
    400: "The body or query is not right; the detail names the field",
    401: "Not logged in",
    403: "The role does not allow it",
    404: "There is no such thing, or it is not yours to see",
    409: "Refused: the reason says why, nothing has changed",
    413: "The body is larger than 64 kB",
    416: "The range lies outside the recording",
    429: "Too many; wait as long as Retry-After says",
    503: "The database or the engine is away for the moment",
}


def openapi_document(contracts: Iterable[Contract], *, version: str) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes."""
    contracts = list(contracts)
    models: list[tuple[type[BaseModel], Any]] = [(ProblemView, "serialization")]
    for contract in contracts:
        models += [(contract.body, "validation")] if contract.body else []
        models += [(contract.result, "serialization")] if contract.result else []
        models += [(answer, "serialization") for answer in contract.answers.values()]
    unique = list(dict.fromkeys(models))
    references, definitions = models_json_schema(unique, ref_template=_REFERENCE)
    schemas = dict(definitions["$defs"])
    for contract in contracts:
        if contract.query is not None:
            schemas |= _schema_of(contract.query).get("$defs", {})
    paths: dict[str, dict[str, Any]] = {}
    for contract in contracts:
        operation = _operation(contract, references)
        paths.setdefault(contract.path, {})[contract.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "callcenter",
            "version": version,
            "description": "Every command of the console as REST; the WebSocket /api/v1/console is described by"
            " /api/v1/wire.json.",
            "license": {"name": "GPL-3.0-or-later", "identifier": "GPL-3.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"session": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(contract: Contract, references: Mapping[Any, Any]) -> dict[str, Any]:
    if contract.result is not None:
        content = {contract.media: {"schema": references[(contract.result, "serialization")]}}
    else:
        content = {contract.media: {"schema": {}}}
    problem = {"application/json": {"schema": references[(ProblemView, "serialization")]}}
    responses: dict[str, Any] = {str(contract.status): {"description": "Done", "content": content}}
    if 416 in contract.problems:
        responses["206"] = {"description": "The range asked for", "content": content}
    for status in contract.problems:
        responses[str(status)] = {"description": _PROBLEM_TEXTS[status], "content": problem}
    for status, answer in contract.answers.items():
        schema = references[(answer, "serialization")]
        responses[str(status)] = {
            "description": "Also an answer",
            "content": {contract.media: {"schema": schema}},
        }
    operation: dict[str, Any] = {
        "operationId": _operation_id(contract),
        "summary": contract.summary,
        "responses": responses,
        "security": [{"session": []}] if contract.login else [],
    }
    if contract.right is not None:
        operation["x-right"] = contract.right.value
    parameters = [
        {
            "name": part,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": f"^{PATH_PATTERNS[part]}$"},
        }
        for part in contract.parts
    ]
    if contract.query is not None:
        parameters += _query_parameters(contract.query)
    if 416 in contract.problems:
        parameters.append(
            {"name": hdrs.RANGE, "in": "header", "required": False, "schema": {"type": "string"}}
        )
    if parameters:
        operation["parameters"] = parameters
    if contract.body is not None:
        operation["requestBody"] = {
            "required": any(field.is_required() for field in contract.body.model_fields.values()),
            "content": {"application/json": {"schema": references[(contract.body, "validation")]}},
        }
    return operation


def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(by_alias=True, ref_template=_REFERENCE)


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = _schema_of(model)
    required = set(schema.get("required", ()))
    return [
        {"name": name, "in": "query", "required": name in required, "schema": each}
        for name, each in schema.get("properties", {}).items()
    ]


def _operation_id(contract: Contract) -> str:
    words = re.findall(r"[a-z]+", contract.path.removeprefix("/api/v1").replace("{", "by_").lower())
    return "_".join((contract.method.lower(), *words))
