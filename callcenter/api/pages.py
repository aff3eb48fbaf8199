"""The console's files: what the build of ``agent_console`` has left, with the headers a browser needs to trust it."""

import re
from pathlib import Path

from aiohttp import hdrs, web

_HOST = re.compile(r"(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


class Pages:
    """Serves a built console, or nothing where none was built.

    Everything below ``assets`` has its content's hash in its name and may be kept for ever; the page that names them
    is asked for anew each time. ``.gz`` files beside the originals are sent to whoever takes them.
    """

    def __init__(self, root: Path | None, *, softphone_ports: tuple[int, int]) -> None:
        self._root = root
        self._ports = softphone_ports

    def routes(self) -> list[web.RouteDef]:
        return [web.get(r"/assets/{name:[A-Za-z0-9][A-Za-z0-9._-]{0,119}}", self._asset)]

    def index(self, request: web.Request) -> web.StreamResponse | None:
        """The page itself; None where no console was built."""
        if self._root is None or not (self._root / "index.html").is_file():
            return None
        return web.FileResponse(
            self._root / "index.html",
            headers={
                hdrs.CONTENT_TYPE: "text/html; charset=utf-8",
                hdrs.CACHE_CONTROL: "no-cache",
                "Content-Security-Policy": self._policy(request),
                "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
            },
        )

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        path = self._root / "assets" / name if self._root is not None else None
        content_type = _TYPES.get(Path(name).suffix)
        if path is None or content_type is None or not path.is_file():
            raise web.HTTPNotFound(reason="no such file")
        return web.FileResponse(
            path,
            headers={
                hdrs.CONTENT_TYPE: content_type,
                hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable",
            },
        )

    def _policy(self, request: web.Request) -> str:
        """Nothing from elsewhere and nothing inline runs; beside this server only Asterisk's WebSocket is spoken to."""
        talks = ["'self'"]
        if _HOST.fullmatch(request.host):
            name = re.sub(r":\d+$", "", request.host)
            ws, wss = self._ports
            scheme = "wss" if request.secure else "ws"
            # Older Chromiums do not count ws as 'self'.
            talks += [f"{scheme}://{request.host}", f"ws://{name}:{ws}", f"wss://{name}:{wss}"]
        return (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
            f" font-src 'self'; media-src 'self' blob:; worker-src 'self'; connect-src {' '.join(talks)};"
            " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
