// The official Node SDK, unmodified, against the embedded fact store. Started by tests/it/sdk.rs, with the same environment as
// python_sdk.py and with FACTSYNC_SDK, the folder of the npm package.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const { Oso } = createRequire(import.meta.url)(process.env.FACTSYNC_SDK);
const { FACTSYNC_URL: URL, FACTSYNC_FREE_URL: FREE_URL, FACTSYNC_LOSSY_URL: LOSSY_URL, FACTSYNC_KEY: KEY } = process.env;

let checks = 0;
function check(got, want) {
  checks += 1;
  assert.deepEqual(got, want);
}

/** `call` must reject with an OsoError of this status, with the text in its message and with a request id. */
async function refused(status, text, call) {
  const error = await call().then(() => assert.fail(`${status} expected`), (error) => error);
  check(error.statusCode, status);
  assert.match(error.message, /^Oso Cloud error: .* \(Request ID: [0-9a-f-]{36}\)$/);
  assert.ok(error.message.includes(text), error.message);
  return error;
}

const order = (facts) => facts.map((fact) => JSON.stringify(fact)).sort();
const oso = new Oso(URL, ` ${KEY}\n`);
const [bob, eve] = ["bob", "eve"].map((id) => ({ type: "User", id }));
const [acme, umbrella] = ["acme", "umbrella"].map((id) => ({ type: "Repository", id }));
const string = (id) => ({ type: "String", id });

// Every kind of value, written and read back.
check(await oso.insert(["has_role", bob, "owner", acme]), undefined);
check(await oso.get(["has_role", bob, "owner", acme]), [["has_role", bob, string("owner"), acme]]);
const kinds = ["kinds", true, false, 42, -7, 9007199254740993n];
const wired = ["kinds", ...[["Boolean", "true"], ["Boolean", "false"], ["Integer", "42"], ["Integer", "-7"], ["Integer", "9007199254740993"]].map(([type, id]) => ({ type, id }))];
await oso.insert(kinds);
check(await oso.get(kinds), [wired]);
check(await oso.get(["kinds", true, { type: "Boolean" }, null, -7, {}]), [wired]);
const odd = ["odd", { type: "User", id: 'žlu "q" \\ \n 日本 😀' }, { type: "User", id: "a b&c=d/é+%" }];
await oso.insert(odd);
check(await oso.get(odd), [odd]);
check(await oso.get(["odd", odd[1], null]), [odd]);

// A numeric id stays a JSON number on the wire; here it is the same user as its text.
await oso.insert(["numeric", { type: "User", id: 123 }]);
await oso.insert(["numeric", { type: "User", id: "123" }]);
check(await oso.get(["numeric", { type: "User", id: 123 }]), [["numeric", { type: "User", id: "123" }]]);
await oso.delete(["numeric", { type: "User", id: 123 }]);
check(await oso.get(["numeric", null]), []);

// Sets: inserting again and deleting what is absent change nothing.
await oso.insert(["has_role", bob, "owner", acme]);
await oso.delete(["has_role", eve, "owner", acme]);
check((await oso.get(["has_role", null, null, null])).length, 1);

// A batch, in order; an empty one sends nothing.
await oso.batch((tx) => {
  tx.insert(["has_role", eve, "owner", acme]);
  tx.insert(["has_role", eve, "reader", umbrella]);
  tx.delete(["has_role", eve, "owner", null]);
  tx.insert(["has_role", bob, "reader", umbrella]);
});
await oso.batch(() => {});
const roles = [["has_role", bob, string("owner"), acme], ["has_role", bob, string("reader"), umbrella], ["has_role", eve, string("reader"), umbrella]];
check(order(await oso.get(["has_role", null, null, null])), order(roles));

// Reading with wildcards, typed and not; fewer arguments mean any number from there on.
check(order(await oso.get(["has_role", { type: "User" }, "reader", null])), order(roles.slice(1)));
check(await oso.get(["has_role", null, {}, acme]), roles.slice(0, 1));
check(await oso.get(["has_role", { type: "Team" }, null, null]), []);
check((await oso.get(["has_role", bob])).length, 2);

// Deleting with wildcards; the number of arguments counts.
await oso.insert(["has_role", bob, "owner"]);
await oso.delete(["has_role", bob, null]);
check(order(await oso.get(["has_role", bob])), order(roles.slice(0, 2)));
await oso.delete(["has_role", { type: "User" }, {}, { type: "Repository" }]);
check(await oso.get(["has_role", null, null, null]), []);

// What the SDK lets through and a fact store must not take: 400, and nothing of the batch is there.
for (const [bad, text] of [
  [["f", null], "entry 2: argument 1: a fact to insert needs a type and an id"],
  [["f", { type: "User" }], "entry 2: argument 1: a fact to insert needs a type and an id"],
  [["f", { type: "User", id: "" }], "entry 2: argument 1: an id is empty"],
  [["f", { type: "User", id: "*" }], "entry 2: argument 1: an id is"],
  [["f", { type: "User", id: 1.5 }], "entry 2: argument 1: the id is a JSON number"],
  [["f", 12345678901234567890n], "entry 2: argument 1: an Integer"],
  [["f"], "entry 2: it has 0 arguments"],
  [["f", "a", "b", "c", "d", "e", "f"], "entry 2: it has 6 arguments"],
]) {
  const both = () =>
    oso.batch((tx) => {
      tx.insert(["f", bob]);
      tx.insert(bad);
    });
  await refused(400, text, both);
}
check(await oso.get(["f"]), []);

// Limits.
const insert = (oso, count, text = "x") =>
  oso.batch((tx) => {
    for (let n = 0; n < count; n += 1) tx.insert(["many", { type: "User", id: `${n}-${text}` }]);
  });
await insert(oso, 1000);
check((await oso.get(["many", null])).length, 1000);
await refused(413, "1001 entries", () => insert(oso, 1001));
await refused(413, "960 KiB", () => insert(oso, 9000, "y".repeat(500) + "😀"));
await oso.delete(["many", null]);
check(await oso.get(["many", null]), []);

// A URL that ends in a slash: this SDK then asks for //api/facts.
const free = new Oso(`${FREE_URL}/`, KEY);
await refused(413, "21 entries", () => insert(free, 21));
for (let start = 0; start < 50; start += 1) await insert(free, 20, start);
const error = await refused(429, "1000 fact updates a minute", () => insert(free, 1));
assert.ok(Number.isInteger(Number(error.retryAfter)) && error.retryAfter >= 1 && error.retryAfter <= 61, `${error.retryAfter}`);
check((await free.get(["many", null])).length, 1000);

// Wrong keys, and what is not served.
await refused(401, "API key", () => new Oso(URL, "wrong").get(["f", null]));
await refused(401, "API key", () => new Oso(URL, "wrong").insert(["f", bob]));
await refused(404, "decision endpoints", () => oso.authorize(bob, "read", acme));
await refused(404, "decision endpoints", () => oso.list(bob, "read", "Repository"));
await refused(404, "decision endpoints", () => oso.actions(bob, acme));

// The policy.
check((await oso.api.getPolicy()).policy, null);
check(await oso.policy("actor User {}"), undefined);
check(await oso.policy("actor User {}"), undefined);
check((await oso.api.getPolicy()).policy, { filename: "", src: "actor User {}" });
check((await oso.getPolicyMetadata()).resources, {});

// clearData leaves the policy.
await oso.insert(["has_role", bob, "owner", acme]);
check((await oso.api.clearData()).message, "facts cleared");
check([...(await oso.get(["has_role", null, null, null])), ...(await oso.get(["odd", null, null]))], []);
check((await oso.api.getPolicy()).policy !== null, true);

// The consistency token of the last change is kept and moves on.
const before = Number(oso.api.lastOffset);
await oso.insert(["has_role", bob, "owner", acme]);
check(Number(oso.api.lastOffset) > before, true);
oso.api.lastOffset = "of-another-store";
check((await oso.get(["has_role", null, null, null])).length, 1);

// An answer that is lost: the SDK sends the batch again, and it is there once.
await new Oso(LOSSY_URL, KEY).insert(["has_role", eve, "owner", acme]);
check((await oso.get(["has_role", eve, null, null])).length, 1);

// A server that is gone is a network error without a status.
const gone = await new Oso("http://127.0.0.1:1", KEY).get(["f", null]).then(() => assert.fail("nobody listens there"), (error) => error);
check(gone.statusCode, undefined);

await oso.delete(["has_role", null, null, null]);
await oso.insert(["finished", "node"]);
console.log(`${checks} checks passed`);
