// Read your own writes, with Oso's SDK and factsync: copy this file.
//
// After a write the application asks PostgreSQL how far its log reaches, waits until factsync has delivered the facts of everything
// before that, and gets the fact store's own consistency token. Reads that present the token see the write, in this process and in
// any other.
//
//     await client.query("DELETE FROM member WHERE ...");
//     await written(client);                          // throws NotYet when time runs out
//     await oso.authorize(user, "read", repository);  // knows of it

const { AsyncLocalStorage } = require("node:async_hooks");

const FACTSYNC = process.env.FACTSYNC_URL || "http://127.0.0.1:7878";
const COOKIE = "fact_token";

// Of the request that is being handled: others, which run in between, have their own.
const requests = new AsyncLocalStorage();

/** The write is committed, and its facts are not in force yet. They will be; what to tell the user until then is the application's choice. */
class NotYet extends Error {}

/**
 * Makes `oso` present the request's token with everything it asks.
 *
 * The SDK keeps one token for all requests of the process in `lastOffset`, that of its own last mutation, and forgets it when an answer
 * has none. Here each request has its own, which nothing takes away.
 */
function carry(oso) {
  Object.defineProperty(oso.api, "lastOffset", {
    get: () => requests.getStore()?.token ?? null,
    set: (token) => token && requests.getStore() && (requests.getStore().token = token),
  });
  return oso;
}

/**
 * To be called after the COMMIT, with a client or a pool of the primary. Afterwards reads see what was written.
 *
 * With `synchronous_commit = off` ask for pg_current_wal_insert_lsn() instead: the commit may not be in the log's files yet.
 */
async function written(client, timeoutMs = 2000) {
  const { rows } = await client.query("SELECT pg_current_wal_lsn()::text AS position");
  const token = await wait(rows[0].position, timeoutMs);
  const store = requests.getStore();
  if (store) store.token = token ?? store.token;
  return token;
}

/** The fact store's token once the facts of everything up to `position` are there. */
async function wait(position, timeoutMs = 2000) {
  const query = new URLSearchParams({ position, timeout_ms: timeoutMs });
  // factsync answers in time; the margin is the network's. Not there is no different from late: it delivers when it is back.
  const answered = fetch(`${FACTSYNC}/v1/wait?${query}`, { signal: AbortSignal.timeout(timeoutMs + 1000) });
  const answer = await answered.catch((error) => Promise.reject(new NotYet(`factsync does not answer: ${error.cause ?? error}`)));
  const body = await answer.text();
  if (answer.status === 503 || answer.status === 504) throw new NotYet(body); // Too many wait; time ran out.
  if (answer.status !== 200) throw new Error(`factsync answers ${answer.status}: ${body}`); // A mistake here, such as a missing source.
  return JSON.parse(body).offset;
}

/** Around a handler of node:http: the token comes with the request and goes with the response, for the client's next one, anywhere. */
function middleware(handler) {
  return (request, response) => {
    const [, cookie] = (request.headers.cookie ?? "").match(new RegExp(`(?:^|; )${COOKIE}=([\\w%.~-]{1,200})(?:;|$)`)) ?? [];
    const store = { token: decode(cookie) };
    const before = store.token;
    const { writeHead } = response;
    response.writeHead = function (status, ...rest) {
      // By then every replica of the fact store has long seen it.
      const value = `${COOKIE}=${encodeURIComponent(store.token)}; Path=/; Max-Age=300; HttpOnly; SameSite=Lax`;
      if (store.token && store.token !== before) response.appendHeader("Set-Cookie", value);
      return writeHead.call(response, status, ...rest);
    };
    return requests.run(store, () => handler(request, response));
  };
}

/** It comes from the client. At worst it makes the client's own reads wait, but it must not break a header. */
function decode(cookie) {
  try {
    const token = decodeURIComponent(cookie ?? "");
    return /^[\x20-\x7e]+$/.test(token) ? token : null;
  } catch {
    return null;
  }
}

module.exports = { NotYet, carry, middleware, wait, written };
