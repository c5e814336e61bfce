"""Read your own writes, with Oso's SDK and factsync: copy this file.

After a write the application asks PostgreSQL how far its log reaches, waits until factsync has delivered the facts of everything before
that, and gets the fact store's own consistency token. Reads that present the token see the write, in this process and in any other.

    with connection.transaction():
        connection.execute("DELETE FROM member WHERE ...")
    read_your_writes.written(connection)        # raises NotYet when time runs out
    oso.authorize(user, "read", repository)     # knows of it
"""

import contextvars
import http.client
import json
import os
from http.cookies import CookieError, SimpleCookie
from urllib.parse import quote, unquote, urlencode, urlsplit

FACTSYNC = urlsplit(os.environ.get("FACTSYNC_URL", "http://127.0.0.1:7878"))
COOKIE = "fact_token"

# Of the request that is being handled: requests of other threads have their own.
_token = contextvars.ContextVar("fact_token", default=None)


class NotYet(Exception):
    """The write is committed, and its facts are not in force yet. They will be; what to tell the user until then is the application's choice."""


def carry(oso):
    """Makes `oso` present the request's token with everything it asks.

    The SDK keeps one token for all requests of the process, that of its own last mutation; this one goes into its place. `auth` is
    called for each request, after the session's headers are in it; the API key is among those.
    """

    def present(request):
        if token := _token.get():
            request.headers["OsoOffset"] = token
        return request

    oso.api.session.auth = present
    return oso


def written(connection, timeout=2.0):
    """To be called after the COMMIT, with an autocommit connection to the primary. Afterwards reads see what was written.

    With `synchronous_commit = off` ask for pg_current_wal_insert_lsn() instead: the commit may not be in the log's files yet.
    """
    position = connection.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0]
    _token.set(wait(position, timeout) or _token.get())


def wait(position, timeout=2.0):
    """The fact store's token once the facts of everything up to `position` are there."""
    # A connection of its own, behind nobody else's wait. factsync answers in time; the margin is the network's.
    factsync = http.client.HTTPConnection(FACTSYNC.hostname, FACTSYNC.port, timeout=timeout + 1)
    try:
        factsync.request("GET", "/v1/wait?" + urlencode({"position": position, "timeout_ms": int(timeout * 1000)}))
        answer = factsync.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:  # factsync is not there, which is no different from being late: it delivers when it is back.
        raise NotYet(f"factsync does not answer: {error}") from error
    finally:
        factsync.close()
    if answer.status in (503, 504):  # Too many wait already; time ran out.
        raise NotYet(body.decode())
    if answer.status != 200:  # A mistake here, such as the name of a source that is missing.
        raise RuntimeError(f"factsync answers {answer.status}: {body.decode()}")
    return json.loads(body)["offset"]


def middleware(app):
    """WSGI: the token comes with the request and goes with the response, so that the next request of the same client has it anywhere."""

    def wrapped(environ, start_response):
        try:
            cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(COOKIE)
        except CookieError:
            cookie = None
        before = unquote(cookie.value) if cookie else None
        # It comes from the client. At worst it makes the client's own reads wait, but it must not break a header.
        _token.set(before if before and before.isascii() and before.isprintable() and len(before) < 200 else None)

        def start(status, headers, exc_info=None):
            if (token := _token.get()) and token != before:
                # By then every replica of the fact store has long seen it.
                headers = [*headers, ("Set-Cookie", f"{COOKIE}={quote(token, safe='')}; Path=/; Max-Age=300; HttpOnly; SameSite=Lax")]
            return start_response(status, headers, exc_info)

        return app(environ, start)

    return wrapped
