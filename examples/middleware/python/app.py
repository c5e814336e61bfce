"""A small application: who is a member of the team? Started as `app.py PORT`, with DATABASE_URL, FACTSYNC_URL, OSO_URL and OSO_AUTH.

    PUT /members/7     makes user 7 a member
    DELETE /members/7  ends that
    GET /members/7     whether the fact store knows user 7 as a member
"""

import os
import sys
import threading
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import psycopg
from oso_cloud import Oso, Value

from read_your_writes import NotYet, carry, middleware, written

oso = carry(Oso(url=os.environ["OSO_URL"], api_key=os.environ["OSO_AUTH"]))
local = threading.local()


def connection():
    # One for each thread; an application has a pool. autocommit: the position is asked for after the COMMIT, in no transaction.
    if not hasattr(local, "connection"):
        local.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    return local.connection


def handle(method, user):
    if method == "GET":
        # With a policy this is oso.authorize(Value("User", user), "read", ...); the token goes with that in the same way.
        known = oso.get(("has_role", Value("User", user), "member"))
        return "200 OK", "a member" if known else "no member"
    if method == "PUT":
        with connection().transaction():
            connection().execute("INSERT INTO member (id) VALUES (%s) ON CONFLICT DO NOTHING", [user])
        try:
            written(connection())
        except NotYet:
            # A grant that comes a little later harms nobody.
            return "202 Accepted", "a member in a moment"
        return "200 OK", "a member"
    if method == "DELETE":
        with connection().transaction():
            connection().execute("DELETE FROM member WHERE id = %s", [user])
        try:
            written(connection())
        except NotYet:
            # It is committed and will come into force, but nobody may rely on it yet: not a success. Asking again is safe, and waits again.
            return "503 Service Unavailable", "the access is not taken away yet, ask again"
        return "200 OK", "no member"
    return "405 Method Not Allowed", "GET, PUT or DELETE"


@middleware
def app(environ, start_response):
    user = environ["PATH_INFO"].removeprefix("/members/")
    status, text = handle(environ["REQUEST_METHOD"], user) if user.isdecimal() else ("404 Not Found", "/members/NUMBER")
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]


class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


if __name__ == "__main__":
    server = make_server("127.0.0.1", int(sys.argv[1]), app, server_class=Server, handler_class=WSGIRequestHandler)
    print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
