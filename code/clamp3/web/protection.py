"""What every request passes first: who may ask, how much they may send, and what browsers may do with the answer."""

import asyncio
import contextlib
import hmac
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "clamp3_token"
# The style sheet that abcjs 6.7.2 puts into each score, and its style attributes; no other inline styles.
ABCJS_STYLE = "'sha256-BCpnf71gZdCsSCHDzyB1RsBbZ0qQdqseK6v+yJsgg30='"
PAGE_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'"),
        *(f"style-src 'self' {ABCJS_STYLE}", "style-src-attr 'unsafe-inline'"),
        *("img-src 'self'", "media-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"),
    )
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class Limits:
    """Of a request."""

    upload_megabytes: int = 50  # all that it sends
    upload_seconds: float = 60  # until all of it is here
    work_seconds: float = 60  # until an uploaded file is embedded, or a score converted
    texts: int = 256  # of /v1/embeddings
    characters: int = 20_000  # of a text
    files: int = 32  # of /embed


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine, seen from itself."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Protection:
    """An ASGI application around another, for which see the module.

    Without a token, only requests to a loopback name are answered, so that no page elsewhere reaches the server by a
    name of its own. Pages of other origins may not send it anything, and there is no CORS.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str | None = None):
        self.app, self.limits, self.token = app, limits, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        bounded = _Bounded(receive, self.limits)
        is_replaced = False

        async def send_with_headers(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start":
                # FastAPI makes an answer of its own of whatever goes wrong while it reads a request.
                if bounded.excess is not None and not is_replaced:
                    is_replaced = True
                    await bounded.excess(scope, receive, send_with_headers)
                    raise Replaced
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(scope)
        with contextlib.suppress(Replaced):
            if refusal is not None:
                await refusal(scope, receive, send_with_headers)
            else:
                await self.app(scope, bounded, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        """What to answer in place of the application; None: nothing."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.token is None and not is_loopback(urlsplit(f"//{host}").hostname or ""):
            return problem(421, "this server answers at a loopback address alone, such as http://127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and scope["method"] not in ("GET", "HEAD") and urlsplit(origin).netloc != host:
            return problem(403, "a page from elsewhere may not use this server")
        if self.token is None:
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if scope["path"] == "/" and self._is_right(given):
            answer = RedirectResponse("/", 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        offered = [headers.get("authorization", "").removeprefix("Bearer "), _cookie(headers.get("cookie", ""))]
        if any(map(self._is_right, offered)):
            return None
        said = "this server wants its token: open /?token=TOKEN, or send the header Authorization: Bearer TOKEN"
        return problem(401, said, {"WWW-Authenticate": "Bearer"})

    def _is_right(self, offered: str) -> bool:
        return hmac.compare_digest(offered.encode(), (self.token or "").encode())


class Replaced(Exception):
    """The application's answer has given way to another one."""


class _Bounded:
    """`receive` of a request, which fails where the body is too long or takes too long to come."""

    def __init__(self, receive: Receive, limits: Limits):
        self.receive, self.limits = receive, limits
        self.excess: Response | None = None  # what to answer once it has failed
        self._received, self._is_whole = 0, False
        self._deadline = asyncio.get_running_loop().time() + limits.upload_seconds

    async def __call__(self) -> Message:
        if self._is_whole:  # what comes now is the end of the connection, whenever that is
            return await self.receive()
        remaining = self._deadline - asyncio.get_running_loop().time()
        try:
            message = await asyncio.wait_for(self.receive(), max(remaining, 0.001))
        except asyncio.TimeoutError:  # noqa: UP041  (another class in Python 3.10)
            raise self._fail(408, f"the upload takes longer than {self.limits.upload_seconds:g} s") from None
        self._received += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._received > self.limits.upload_megabytes * 10**6:
            raise self._fail(413, f"more than {self.limits.upload_megabytes} MB, the most that may be sent")
        return message

    def _fail(self, status: int, sentence: str) -> Exception:
        self.excess = problem(status, sentence, {"Connection": "close"})
        return ValueError(sentence)


def problem(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong."""
    sentence = sentence.encode("utf-8", "backslashreplace").decode()  # it may hold a name that is not UTF-8
    return JSONResponse({"error": {"message": sentence, "code": status}}, status, headers)


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def addresses(host: str, port: int) -> Iterable[str]:
    """Where a browser finds the server."""
    shown = "127.0.0.1" if host in ("", "0.0.0.0", "::") else host
    yield f"http://{f'[{shown}]' if ':' in shown else shown}:{port}/"
