// A small application: who is a member of the team? Started as `app.js PORT`, with DATABASE_URL, FACTSYNC_URL, OSO_URL and OSO_AUTH.
//
//     PUT /members/7     makes user 7 a member
//     DELETE /members/7  ends that
//     GET /members/7     whether the fact store knows user 7 as a member

const http = require("node:http");
const { Oso } = require("oso-cloud");
const { Pool } = require("pg");
const { NotYet, carry, middleware, written } = require("./read_your_writes.js");

const oso = carry(new Oso(process.env.OSO_URL, process.env.OSO_AUTH));
const pool = new Pool({ connectionString: process.env.DATABASE_URL });

async function handle(method, user) {
  if (method === "GET") {
    // With a policy this is oso.authorize({ type: "User", id: user }, "read", ...); the token goes with that in the same way.
    const known = await oso.get(["has_role", { type: "User", id: user }, "member"]);
    return [200, known.length ? "a member" : "no member"];
  }
  if (method === "PUT") {
    // A single statement outside of a transaction is committed when it is answered.
    await pool.query("INSERT INTO member (id) VALUES ($1) ON CONFLICT DO NOTHING", [user]);
    // A grant that comes a little later harms nobody.
    return inForce([200, "a member"], [202, "a member in a moment"]);
  }
  if (method === "DELETE") {
    await pool.query("DELETE FROM member WHERE id = $1", [user]);
    // It is committed and will come into force, but nobody may rely on it yet: not a success. Asking again is safe, and waits again.
    return inForce([200, "no member"], [503, "the access is not taken away yet, ask again"]);
  }
  return [405, "GET, PUT or DELETE"];
}

/** `done` once the write's facts are there, `late` if that takes too long. */
async function inForce(done, late) {
  try {
    // Any connection to the primary will do: the position after the commit covers it.
    await written(pool);
    return done;
  } catch (error) {
    if (error instanceof NotYet) return late;
    throw error;
  }
}

const answer = middleware(async (request, response) => {
  const [, user] = request.url.match(/^\/members\/(\d+)$/) ?? [];
  const failed = (error) => (console.error(error), [500, "something went wrong"]);
  const [status, text] = user ? await handle(request.method, user).catch(failed) : [404, "/members/NUMBER"];
  response.writeHead(status, { "Content-Type": "text/plain; charset=utf-8" });
  response.end(`${text}\n`);
});

const server = http.createServer(answer).listen(Number(process.argv[2]), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
