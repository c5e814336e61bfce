#!/usr/bin/env python3
"""How `factsync run` delivers: revocations beside a first load, an outage of the fact store, a thousand requests that wait.

    cargo build --release && benches/delivery.py
    benches/delivery.py --parts outage --changes 7200000
    benches/delivery.py --quick

revocation  With --plan growth against `factsync serve --limits growth`, which is limited like Oso Cloud, then with both off: a client
            deletes a row whose fact is in the fact store, every 100 ms, and asks the fact store for that fact until it is gone. First
            without anything else to deliver, then while the rest of the same fact type is being loaded. The time is from the answer to
            the COMMIT until the question that no longer finds the fact is sent; one is sent every millisecond, or as fast as they are answered.
outage      The fact store refuses connections, then in a second run answers 503, while changes to a working set are committed as fast as
            factsync stores them. Then it is back: what it takes is counted and compared with the difference between its facts before and the query after.
waiters     `GET /v1/wait` over that many connections at once: how long the answers take after a commit, and what connections that wait
            for something far away cost while others commit.

Everything it starts lives in a temporary directory and ends with it. Needs what tests/run.sh installs.
"""
import argparse, http.client, http.server, json, os, pathlib, re, selectors, shutil, socket, subprocess, sys, tempfile, threading, time, urllib.parse

import streaming
from streaming import ROOT, Server, free_port, number

# The public key of Oso's local development server, which the embedded store accepts on loopback.
KEY = 'e_0123456789_12345_osotesttoken01xiIn'
# A revocation that takes longer than this is waited for no longer; after three of them in a row the rest would only take long.
GIVE_UP = 10
# The generator of an outage rests while the slot keeps more of the log than this, so that what is kept tells of the outage and not of a race.
AHEAD = 32 << 20
FACT_TYPE = 'has_role(User:_, String:_, Team:_)'
SCHEMA = 'CREATE TABLE member (id int PRIMARY KEY, role text NOT NULL, team_id int NOT NULL, active bool NOT NULL);'
FILL = "INSERT INTO member SELECT n, 'member', 1 + n % 3, n % 2 = 0 FROM generate_series(1, {rows}) n;"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--parts', default='revocation,outage,waiters', help='which, separated by commas')
    parser.add_argument('--backfill', type=int, default=1_000_000, help='facts of the first load')
    parser.add_argument('--seconds', type=int, default=30, help='of revocations, with and without a first load')
    parser.add_argument('--plans', default='growth,unlimited', help='of the revocations')
    parser.add_argument('--changes', type=int, default=7_200_000, help='row changes during an outage: 2,000 a second for an hour')
    parser.add_argument('--working', type=int, default=200_000, help='rows that they touch')
    parser.add_argument('--transaction', type=int, default=10, help='changes in a transaction')
    parser.add_argument('--outages', default='refused,503', help='how the fact store is away')
    parser.add_argument('--waiters', type=int, default=1000, help='connections that wait')
    parser.add_argument('--rounds', type=int, default=20, help='of waiters')
    parser.add_argument('--binary', default=str(ROOT / 'target/release/factsync'))
    parser.add_argument('--quick', action='store_true', help='sizes that show that it works, and nothing else')
    parser.add_argument('--keep', action='store_true', help='keep the temporary directory')
    args = parser.parse_args()
    if args.quick:
        args.backfill, args.seconds, args.changes, args.working, args.rounds = 100_000, 3, 40_000, 2_000, 3
    if not os.access(args.binary, os.X_OK):
        sys.exit(f'{args.binary} is missing; run cargo build --release')
    work = pathlib.Path(tempfile.mkdtemp(prefix='factsync-bench-'))
    work.chmod(0o755)
    server = Server(work, False)
    try:
        for part in args.parts.split(','):
            dict(revocation=revocation, outage=outage, waiters=waiters)[part](server, work, args)
    finally:
        server.stop()
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


class Run(streaming.Factsync):
    """`factsync run` over the table `member`."""

    def __init__(self, args, work, name, url, target, plan, query):
        self.args, self.state, self.port, self.target, self.plan = args, work / f'state-{name}', free_port(), target, plan
        self.name, self.url, self.config, self.log = name, url, work / f'{name}.yaml', open(work / f'{name}.log', 'ab')
        self.configure(query)
        self.start()

    def configure(self, query):
        self.config.write_text(json.dumps(dict(
            version=1, source='postgres', facts={FACT_TYPE: dict(db='app', query=query)}, dbs=dict(app=dict(connection_string=self.url)),
            sync=dict(slot='factsync_' + self.name, max_removals=dict(count=100000000, percent=100)))))

    def start(self):
        self.process = spawn(self.log, self.args.binary, 'run', self.config, '--state', self.state, '--listen', f'127.0.0.1:{self.port}', '--limits', 'off',
                             '--plan', self.plan, '--target', self.target)
        until(lambda: self.alive() and self.status().get('state') == 'streaming')

    def alive(self):
        if self.process.poll() is not None:
            sys.exit(f'factsync ended; see {self.log.name} (--keep)')
        return True

    def forget_peak(self):
        """The peak of the resident memory begins anew."""
        pathlib.Path(f'/proc/{self.process.pid}/clear_refs').write_text('5')

    def disk(self):
        """MiB of the state directory."""
        files = (os.path.join(folder, name) for folder, _, names in os.walk(self.state) for name in names)
        return sum(size(file) for file in files) / (1 << 20)


def size(file):
    try:
        return os.stat(file).st_blocks * 512
    except FileNotFoundError:
        return 0


def spawn(log, *command):
    environment = {name: value for name, value in os.environ.items() if name not in ('OSO_AUTH', 'OSO_URL')}
    return subprocess.Popen(list(map(str, command)), stderr=log, stdout=subprocess.DEVNULL, env=environment)


def until(condition, seconds=3600):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError('a condition was not met')
        time.sleep(0.005)
    return found


class Session:
    """One psql that stays: the application's connection."""

    def __init__(self, server, database):
        command = [f'{server.bin}/psql', '-X', '-q', '-At', '-h', str(server.data), '-p', str(server.port), '-U', 'postgres', '-d', database]
        self.psql = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        # The server sends what is on its disk; without this a commit is answered before it can be followed.
        self.ask("SET synchronous_commit = on; SELECT 'ready'")

    def ask(self, sql):
        """Runs `sql`, whose last statement returns one row."""
        self.psql.stdin.write(sql + ';\n')
        self.psql.stdin.flush()
        return self.psql.stdout.readline().strip()

    def position(self):
        return self.ask('SELECT pg_current_wal_lsn()')

    def kept(self, slot):
        """Bytes of the log that the slot keeps, from what factsync has confirmed."""
        return int(self.ask(f"SELECT pg_current_wal_lsn() - confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"))

    def close(self):
        self.psql.stdin.close()
        self.psql.wait()


def percentile(times, part):
    return sorted(times)[min(len(times) - 1, len(times) * part // 100)]


# Revocations.

def revocation(server, work, args):
    print(f'\nrevocation: commit to gone from the fact store, one every 100 ms for {args.seconds} s; first load of {args.backfill:,} facts\n')
    print('| plan | first load | revocations | p50 | p99 | longest | left to load |\n|---|---|---|---|---|---|---|')
    for plan in args.plans.split(','):
        revocations_under(server, work, args, plan, 'growth' if plan == 'growth' else 'off')


def revocations_under(server, work, args, plan, limits):
    database = f'revocation_{plan}'
    server.sql('postgres', f'CREATE DATABASE {database}')
    server.sql(database, SCHEMA + FILL.format(rows=args.backfill) + 'VACUUM ANALYZE; CHECKPOINT;')
    port, log = free_port(), open(work / f'{database}-store.log', 'ab')
    store = spawn(log, args.binary, 'serve', '--limits', limits, '--listen', f'127.0.0.1:{port}', '--state', work / f'{database}-store')
    until(lambda: listens(port), 30)
    # The fact type begins with the facts that will be revoked, so that they are there; then its query grows to all.
    revocable = 2 * (args.seconds * 10 + 10)
    query = 'SELECT id, role, team_id FROM member'
    run = Run(args, work, database, server.url(database), f'http://127.0.0.1:{port}', plan, f'{query} WHERE id <= {revocable}')
    session = Session(server, database)
    run.wait(session.position())
    line = lambda name, times, left: print(
        f'| {plan} | {name} | {len(times)} | {percentile(times, 50):.1f} ms | {percentile(times, 99):.1f} ms | {max(times):.1f} ms | {left:,} |', flush=True)
    line('none', revoke(session, port, 1, args.seconds), 0)
    run.stop()
    run.configure(query)
    began = time.perf_counter()
    run.start()
    until(lambda: run.alive() and queued(run) > args.backfill // 20)
    read = time.perf_counter() - began
    times = revoke(session, port, revocable // 2 + 1, args.seconds, lambda: queued(run) > 0)
    line('under way', times, queued(run))
    print(f'{plan}: from the start until the load was read, compared and queued: {read:.1f} s', file=sys.stderr)
    session.close()
    run.stop()
    store.terminate()
    store.wait(30)
    server.sql(database, f"SELECT pg_drop_replication_slot('factsync_{database}')")


def queued(run):
    """Facts that wait to be sent, live or not."""
    return run.status().get('outbox', {}).get('facts', 0)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(('127.0.0.1', port)) == 0


def revoke(session, port, first, seconds, under_way=lambda: True):
    """Deletes one row after the other, as long as something is under way; the milliseconds that each fact outlived its row."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times, began = [], time.perf_counter()
    for turn in range(seconds * 10):
        time.sleep(max(0, began + turn / 10 - time.perf_counter()))
        # Seldom, because looking costs something, too.
        if turn % 10 == 9 and not under_way():
            break
        assert is_there(connection, first + turn), f'fact {first + turn} is not there to be revoked'
        assert session.ask(f'DELETE FROM member WHERE id = {first + turn} RETURNING id') == str(first + turn)
        committed = time.perf_counter()
        while True:
            asked = time.perf_counter()
            if not is_there(connection, first + turn) or asked > committed + GIVE_UP:
                break
            time.sleep(max(0, asked + 0.001 - time.perf_counter()))
        times.append((asked - committed) * 1000)
        if len(times) >= 3 and min(times[-3:]) > GIVE_UP * 1000:
            print(f'given up: three revocations in a row took more than {GIVE_UP} s', file=sys.stderr)
            break
    return times


def is_there(connection, user):
    connection.request('GET', f'/api/facts?predicate=has_role&args.0.type=User&args.0.id={user}', headers={'Authorization': f'Bearer {KEY}'})
    answer = connection.getresponse()
    body = answer.read()
    assert answer.status == 200, body
    return body != b'[]'


# An outage.

class CountingStore:
    """A fact store that keeps a set, counts what it takes, and can be away."""

    def __init__(self):
        self.facts, self.port, self.lock, self.connections = set(), free_port(), threading.Lock(), set()
        self.server = None
        self.away = False
        self.count()

    def count(self):
        """Counts from zero: requests that were refused, batches that were taken, inserts and deletes in them."""
        self.refused = self.batches = self.inserts = self.deletes = 0

    def listen(self):
        store = self

        class Handler(streaming.NullStore):
            def setup(self):
                super().setup()
                store.connections.add(self.connection)

            def do_POST(self):
                body = self.rfile.read(int(self.headers['Content-Length']))
                if not self.is_away():
                    store.take(json.loads(body))
                    self.answer(b'{"message":"ok"}')

            def do_GET(self):
                if not self.is_away():
                    self.answer(store.listing(urllib.parse.parse_qs(urllib.parse.urlparse(self.path).query)))

            def is_away(self):
                if store.away:
                    store.refused += 1
                    self.send_error(503)
                return store.away

        class Listener(http.server.ThreadingHTTPServer):
            allow_reuse_address, daemon_threads = True, True

            def handle_error(self, *_):
                # Connections that are cut on purpose.
                pass

        self.server = Listener(('127.0.0.1', self.port), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        """From here on connections are refused."""
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        self.connections.clear()

    def take(self, changes):
        with self.lock:
            self.batches += 1
            for change in changes:
                inserts, deletes = (list(map(fact, change.get(name, []))) for name in ('inserts', 'deletes'))
                self.inserts += len(inserts)
                self.deletes += len(deletes)
                self.facts.difference_update(deletes)
                self.facts.update(inserts)

    def listing(self, query):
        with self.lock:
            return json.dumps([dict(predicate=predicate, args=[dict(type=kind, id=text) for kind, text in args])
                               for predicate, *args in self.facts if predicate == query.get('predicate', [predicate])[0]]).encode()


def fact(wire):
    return (wire['predicate'], *((arg['type'], arg['id']) for arg in wire['args']))


class Sampler:
    """What an outage costs, looked at twice a second."""

    def __init__(self, server, database, run):
        self.run, self.session, self.slot = run, Session(server, database), f'factsync_{run.name}'
        self.disk = self.kept = self.queue = 0
        self.modes, self.stop = set(), threading.Event()
        self.thread = threading.Thread(target=self.sample)
        self.thread.start()

    def sample(self):
        while not self.stop.wait(0.5):
            mode = self.run.status().get('outbox', {}).get('mode', 'unknown')
            self.disk, self.kept = max(self.disk, self.run.disk()), max(self.kept, self.session.kept(self.slot))
            self.queue = max(self.queue, queued(self.run))
            self.modes.add(mode)

    def end(self):
        self.stop.set()
        self.thread.join()
        self.session.close()


def outage(server, work, args):
    print(f'\noutage: {args.changes:,} changes of {args.working:,} rows, {args.transaction} in a transaction\n')
    print('| fact store | gross | net | written | as the net | facts right | queue, longest | modes | resident, peak | state before, peak, after | log kept, longest | outage '
          '| caught up after |\n' + '|---' * 13 + '|')
    for how in args.outages.split(','):
        one_outage(server, work, args, how)


def one_outage(server, work, args, how):
    database = f'outage_{how}'
    server.sql('postgres', f'CREATE DATABASE {database}')
    server.sql(database, SCHEMA + FILL.format(rows=args.working) + 'VACUUM ANALYZE; CHECKPOINT;')
    store = CountingStore()
    store.listen()
    query = 'SELECT id, role, team_id FROM member WHERE active'
    run = Run(args, work, database, server.url(database), f'http://127.0.0.1:{store.port}', 'unlimited', query)
    session = Session(server, database)
    run.wait(session.position())
    before, disk = set(store.facts), run.disk()
    run.forget_peak()
    sampler = Sampler(server, database, run)
    store.count()
    if how == 'refused':
        store.close()
    else:
        store.away = True
    began = time.perf_counter()
    gross = commit_changes(server, database, session, run, args)
    end = session.position()
    run.reaches(end)
    took = time.perf_counter() - began
    assert store.batches == 0, 'the fact store took a batch while it was away'
    if how == 'refused':
        store.listen()
    store.away = False
    back = time.perf_counter()
    run.wait(end)
    caught_up = time.perf_counter() - back
    sampler.end()
    rows = (row.split('|') for row in server.sql(database, query).splitlines())
    after = {('has_role', ('User', user), ('String', role), ('Team', team)) for user, role, team in rows}
    net = len(after - before), len(before - after)
    print(f'| {how} | {gross:,} | +{net[0]:,} -{net[1]:,} | +{store.inserts:,} -{store.deletes:,} | {"yes" if net == (store.inserts, store.deletes) else "NO"} '
          f'| {"yes" if store.facts == after else "NO"} | {sampler.queue:,} | {", ".join(sorted(sampler.modes))} | {run.memory()[1]:.0f} MiB '
          f'| {disk:.0f}, {sampler.disk:.0f}, {run.disk():.0f} MiB | {sampler.kept / (1 << 20):.0f} MiB | {took:.0f} s | {caught_up:.1f} s |', flush=True)
    session.close()
    run.stop()
    store.close()
    server.sql(database, f"SELECT pg_drop_replication_slot('factsync_{database}')")


def commit_changes(server, database, session, run, args):
    """Commits the changes; how many facts each of them began or ended, in all."""
    # Every other change switches a row on or off, the others move it to another team, which is two facts if it is on.
    server.sql(database, f'''
        CREATE TABLE tally (facts bigint);
        CREATE PROCEDURE churn(first bigint, last bigint) LANGUAGE plpgsql AS $$
        DECLARE row_id int; was bool; facts bigint := 0;
        BEGIN
          FOR k IN first..last LOOP
            row_id := 1 + (hashint8extended(k, 1) & 9223372036854775807) % {args.working};
            IF hashint8extended(k, 2) & 1 = 0 THEN UPDATE member SET active = NOT active WHERE id = row_id; facts := facts + 1;
            ELSE UPDATE member SET team_id = 1 + team_id % 3 WHERE id = row_id RETURNING active INTO was; facts := facts + CASE WHEN was THEN 2 ELSE 0 END;
            END IF;
            IF k % {args.transaction} = 0 THEN COMMIT; END IF;
          END LOOP;
          INSERT INTO tally VALUES (facts);
        END $$;''')
    chunk, done = 20_000, 0
    while done < args.changes:
        last = min(done + chunk, args.changes)
        server.sql(database, f'CALL churn({done + 1}, {last})')
        until(lambda: run.alive() and session.kept(f'factsync_{run.name}') < AHEAD)
        done = last
    return int(server.sql(database, 'SELECT sum(facts) FROM tally'))


# Waiters.

class Waiters:
    """Connections that ask `/v1/wait` at the same time, all from this thread."""

    def __init__(self, port, count):
        self.sockets, self.selector = [], selectors.DefaultSelector()
        for _ in range(count):
            connection = socket.create_connection(('127.0.0.1', port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(connection, selectors.EVENT_READ)
            self.sockets.append(connection)

    def ask(self, position, timeout_ms):
        request = f'GET /v1/wait?position={position}&timeout_ms={timeout_ms} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n'.encode()
        for connection in self.sockets:
            connection.sendall(request)

    def answers(self):
        """When each answer arrived, and the bodies with their statuses."""
        times, answers, left = [], [], len(self.sockets)
        while left:
            for key, _ in self.selector.select():
                head, _, body = key.fileobj.recv(1 << 16).partition(b'\r\n\r\n')
                times.append(time.perf_counter())
                answers.append((int(head.split()[1]), body))
                left -= 1
        return times, answers

    def close(self):
        for connection in self.sockets:
            connection.close()


def waiters(server, work, args):
    database = 'waiters'
    server.sql('postgres', f'CREATE DATABASE {database}')
    server.sql(database, SCHEMA + FILL.format(rows=1000))
    run = Run(args, work, database, server.url(database), 'embedded', 'unlimited', 'SELECT id, role, team_id FROM member')
    session = Session(server, database)
    run.wait(session.position())
    alone, started = run.memory()[0], run.cpu()
    group = Waiters(run.port, args.waiters)
    times = []
    for turn in range(args.rounds):
        position = session.ask(f'UPDATE member SET team_id = {turn + 10} WHERE id = 1; SELECT pg_current_wal_lsn()')
        began = time.perf_counter()
        group.ask(position, 50_000)
        arrived, answers = group.answers()
        assert {status for status, _ in answers} == {200} and len({body for _, body in answers}) == 1, answers[:3]
        times += [(at - began) * 1000 for at in arrived]
    cpu = (run.cpu() - started) / args.rounds / args.waiters
    print(f'\nwaiters: {args.waiters:,} requests at once, right after a commit, {args.rounds} times: p50 {percentile(times, 50):.1f} ms, p99 {percentile(times, 99):.1f} ms '
          f'from the first request sent to the answers read, {cpu * 1e6:.0f} µs of factsync\'s processor time each; resident {alone:.0f} MiB before, '
          f'{run.memory()[0]:.0f} MiB with the connections', flush=True)
    idle = commits(session, run)
    group.ask('7FFFFFFF/0', 55_000)
    until(lambda: settled(run))
    waited_on = commits(session, run)
    print(f'commits one after the other for 10 s: {idle[0]:,.0f}/s with {idle[1] * 1e6:.0f} µs of processor time each while nobody waits, '
          f'{waited_on[0]:,.0f}/s with {waited_on[1] * 1e6:.0f} µs while {args.waiters:,} wait for something far away; resident {run.memory()[0]:.0f} MiB', flush=True)
    other = Session(server, database)
    print('one who waits for a commit that no query reads, beside them: p50 {:.1f} ms, p99 {:.1f} ms'.format(*unrelated(other, run)), flush=True)
    other.close()
    group.close()
    session.close()
    run.stop()
    server.sql(database, f"SELECT pg_drop_replication_slot('factsync_{database}')")


def settled(run):
    """Whether the processor time stands still."""
    before = run.cpu()
    time.sleep(0.2)
    return run.cpu() - before < 0.02


def commits(session, run, seconds=10):
    """Commits of a fact's change, one after the other: a second, and factsync's processor time for each."""
    done, began, cpu = 0, time.perf_counter(), run.cpu()
    while time.perf_counter() < began + seconds:
        # A steady load, the same with and without waiters.
        time.sleep(max(0, began + done / 300 - time.perf_counter()))
        session.ask(f'UPDATE member SET team_id = {done % 7} WHERE id = 2 RETURNING id')
        done += 1
    took = time.perf_counter() - began
    run.wait(session.position())
    return done / took, (run.cpu() - cpu) / done


def unrelated(session, run, turns=10):
    connection = http.client.HTTPConnection('127.0.0.1', run.port, timeout=60)
    session.ask("CREATE TABLE note (at timestamptz); SELECT 'ready'")
    times = []
    for _ in range(turns):
        position = session.ask('INSERT INTO note VALUES (now()); SELECT pg_current_wal_lsn()')
        began = time.perf_counter()
        connection.request('GET', f'/v1/wait?position={position}&timeout_ms=50000')
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        times.append((time.perf_counter() - began) * 1000)
    return percentile(times, 50), percentile(times, 99)


if __name__ == '__main__':
    main()
