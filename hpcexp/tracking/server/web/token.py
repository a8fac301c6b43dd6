"""Who asks: the token in the address that `hpcexp ui` prints, and the cookie that a browser has of it."""

from __future__ import annotations

import hmac
import secrets
from urllib.parse import parse_qsl, urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response

PARAMETER = "token"
_PAGE = """<!doctype html><meta charset="utf-8"><title>MLflow</title>
<script>location.replace({place!r} + location.hash)</script>
<a href="{place}">Open MLflow</a>
"""


class Token:
    """Lets in who has `token`: in the address once, in a cookie from then on, or as `Authorization: Bearer`."""

    def __init__(self, token: str, port: int) -> None:
        self._token = token
        # Browsers keep the cookies of all ports of a host together.
        self._cookie = f"hpcexp-{port}"
        self._session = secrets.token_urlsafe(32)

    def is_shown(self, authorization: str | None, cookies: str | None) -> bool:
        """Whether a request's headers have it."""
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and _same(credentials.strip(), self._token):
            return True
        pairs = [pair.strip().partition("=") for pair in (cookies or "").split(";")]
        return any(name == self._cookie and _same(value, self._session) for name, _, value in pairs)

    def welcome(self, query: str, fetch_site: str | None) -> Response | None:
        """The answer to an address with the token: the cookie, and the way to the address without it; else None.

        A browser that comes from another site's link would not send such a cookie along with a redirect: it gets a page
        that redirects by itself.
        """
        pairs = parse_qsl(query, keep_blank_values=True)
        given = [value for key, value in pairs if key == PARAMETER]
        if len(given) != 1 or not _same(given[0], self._token):
            return None
        rest = urlencode([pair for pair in pairs if pair[0] != PARAMETER])
        place = "/" + f"?{rest}" * bool(rest)
        is_plain = fetch_site in (None, "none", "same-origin")
        answer = RedirectResponse(place, 303) if is_plain else HTMLResponse(_PAGE.format(place=place))
        answer.set_cookie(self._cookie, self._session, path="/", httponly=True, samesite="strict")
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["Referrer-Policy"] = "no-referrer"
        return answer


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="surrogatepass"), expected.encode())
