"""The official Python SDK, unmodified, against the embedded fact store. Started by tests/it/sdk.rs.

FACTSYNC_URL        a store with the limits of the Growth plan, empty
FACTSYNC_FREE_URL   another with those of the Free plan, empty
FACTSYNC_LOSSY_URL  the first one behind a proxy that swallows the first response to a POST
FACTSYNC_KEY        the key of both
"""

import os

import requests
from oso_cloud import Oso, Value, ValueOfType
from oso_cloud.api import OsoException

URL, FREE_URL, LOSSY_URL, KEY = (os.environ[f"FACTSYNC_{name}"] for name in ("URL", "FREE_URL", "LOSSY_URL", "KEY"))

checks = 0


def check(got, want):
    global checks
    checks += 1
    assert got == want, f"got {got!r}, want {want!r}"


def refused(status, text, call):
    """`call` must raise OsoException with this status, and the text in the server's {"message"}."""
    try:
        call()
    except OsoException as error:
        check(error.status_code, status)
        assert f'Oso Server error: {status}\n{{"message":"' in str(error), error
        assert text in str(error), error
        return error
    raise AssertionError(f"{status} expected")


def facts(oso, pattern):
    """What get() returns, in an order of our own."""
    return sorted(oso.get(pattern), key=repr)


oso = Oso(url=URL, api_key=KEY)
bob, eve, acme, umbrella = Value("User", "bob"), Value("User", "eve"), Value("Repository", "acme"), Value("Repository", "umbrella")
string = lambda text: Value("String", text)

# Every kind of value, written and read back.
check(oso.insert(("has_role", bob, "owner", acme)), None)
check(oso.get(("has_role", bob, "owner", acme)), [("has_role", bob, string("owner"), acme)])
kinds = ("kinds", True, False, 42, -7, Value("X", 123))
wired = ("kinds", Value("Boolean", "true"), Value("Boolean", "false"), Value("Integer", "42"), Value("Integer", "-7"), Value("X", "123"))
oso.insert(kinds)
check(oso.get(kinds), [wired])
check(oso.get(("kinds", True, ValueOfType("Boolean"), None, -7, None)), [wired])
odd = ("odd", Value("User", 'žluťoučký "q" \\ \n 日本 😀'), Value("User", "a b&c=d/é+%"))
oso.insert(odd)
check(oso.get(odd), [odd])
check(oso.get(("odd", odd[1], None)), [odd])

# Sets: inserting again and deleting what is absent change nothing.
oso.insert(("has_role", bob, "owner", acme))
oso.delete(("has_role", eve, "owner", acme))
check(len(oso.get(("has_role", None, None, None))), 1)

# A batch, in order; one that raises sends nothing; an empty one sends nothing.
with oso.batch() as tx:
    tx.insert(("has_role", eve, "owner", acme))
    tx.insert(("has_role", eve, "reader", umbrella))
    tx.delete(("has_role", eve, "owner", None))
    tx.insert(("has_role", bob, "reader", umbrella))
with oso.batch() as tx:
    pass
try:
    with oso.batch() as tx:
        tx.insert(("never", bob))
        raise KeyError("the block fails")
except KeyError:
    check(oso.get(("never", None)), [])
roles = [("has_role", bob, string("owner"), acme), ("has_role", bob, string("reader"), umbrella), ("has_role", eve, string("reader"), umbrella)]
check(facts(oso, ("has_role", None, None, None)), sorted(roles, key=repr))

# Reading with wildcards, typed and not; fewer arguments mean any number from there on.
check(facts(oso, ("has_role", ValueOfType("User"), "reader", None)), sorted(roles[1:], key=repr))
check(oso.get(("has_role", None, None, acme)), roles[:1])
check(oso.get(("has_role", ValueOfType("Team"), None, None)), [])
check(len(oso.get(("has_role", bob))), 2)

# Deleting with wildcards; the number of arguments counts.
oso.insert(("has_role", bob, "owner"))
oso.delete(("has_role", bob, None))
check(facts(oso, ("has_role", bob)), sorted(roles[:2], key=repr))
oso.delete(("has_role", ValueOfType("User"), None, ValueOfType("Repository")))
check(oso.get(("has_role", None, None, None)), [])

# What the SDK lets through and a fact store must not take: 400, and nothing of the batch is there.
for bad, text in [
    (("f", Value("User", "")), "entry 2: argument 1: an id is empty"),
    (("f", Value("", "x")), "entry 2: argument 1: the type is empty"),
    (("f", Value("User", "*")), "entry 2: argument 1: an id is"),
    (("f", Value("User", "x" * 513)), "entry 2: argument 1: an id is longer than 512 bytes"),
    (("f", 2**63), "entry 2: argument 1: an Integer"),
    (("f",), "entry 2: it has 0 arguments"),
    (("f", "a", "b", "c", "d", "e", "f"), "entry 2: it has 6 arguments"),
]:

    def both():
        with oso.batch() as tx:
            tx.insert(("f", bob))
            tx.insert(bad)

    refused(400, text, both)
check(oso.get(("f",)), [])

# Limits.
def insert(oso, count, text="x"):
    with oso.batch() as tx:
        for n in range(count):
            tx.insert(("many", Value("User", f"{n}-{text}")))


insert(oso, 1000)
check(len(oso.get(("many", None))), 1000)
refused(413, "1001 entries", lambda: insert(oso, 1001))
refused(413, "960 KiB", lambda: insert(oso, 9000, text="y" * 500 + "😀"))
oso.delete(("many", None))
check(oso.get(("many", None)), [])

free = Oso(url=FREE_URL + "/", api_key=KEY)
refused(413, "21 entries", lambda: insert(free, 21))
for start in range(50):
    insert(free, 20, text=start)
error = refused(429, "1000 fact updates a minute", lambda: insert(free, 1))
check(isinstance(error.retry_after, int) and 1 <= error.retry_after <= 61, True)
check(len(free.get(("many", None))), 1000)

# Wrong keys, and what is not served.
refused(401, "API key", lambda: Oso(url=URL, api_key="wrong").get(("f", None)))
refused(401, "API key", lambda: Oso(url=URL, api_key="wrong").insert(("f", bob)))
refused(404, "decision endpoints", lambda: oso.authorize(bob, "read", acme))
refused(404, "decision endpoints", lambda: oso.list(bob, "read", "Repository"))
refused(404, "decision endpoints", lambda: oso.actions(bob, acme))

# The policy.
check(oso.api.get_policy().policy, None)
check(oso.policy("actor User {}"), None)
check(oso.policy("actor User {}"), None)
policy = oso.api.get_policy().policy
policy = policy if isinstance(policy, dict) else vars(policy)
check(policy, {"filename": "", "src": "actor User {}"})
check(oso.get_policy_metadata().resources, {})

# clear_data leaves the policy.
oso.insert(("has_role", bob, "owner", acme))
check(oso.api.clear_data().message, "facts cleared")
check(oso.get(("has_role", None, None, None)) + oso.get(("odd", None, None)), [])
check(oso.api.get_policy().policy is None, False)

# The consistency token of the last change is kept and moves on.
before = int(oso.api.session.headers["OsoOffset"])
oso.insert(("has_role", bob, "owner", acme))
check(int(oso.api.session.headers["OsoOffset"]) > before, True)
oso.api.session.headers["OsoOffset"] = "of-another-store"
check(len(oso.get(("has_role", None, None, None))), 1)

# An answer that is lost: the SDK sends the batch again, and it is there once.
lossy = Oso(url=LOSSY_URL, api_key=KEY)
lossy.insert(("has_role", eve, "owner", acme))
check(len(oso.get(("has_role", eve, None, None))), 1)

# A server that is gone is a network error, not an OsoException.
try:
    Oso(url="http://127.0.0.1:1", api_key=KEY).get(("f", None))
    raise AssertionError("nobody listens there")
except requests.exceptions.ConnectionError:
    checks += 1

oso.delete(("has_role", None, None, None))
oso.insert(("finished", "python"))
print(f"{checks} checks passed")
