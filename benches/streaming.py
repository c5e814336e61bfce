#!/usr/bin/env python3
"""How fast `factsync run` follows a PostgreSQL, as a ratio to pg_recvlogical draining a slot of the same publication to /dev/null.

    cargo build --release && benches/streaming.py
    benches/streaming.py --cases join --rows 10000000

For each case and each size of transaction: a workload is committed while factsync is stopped, so that both readers find the same
backlog; then pg_recvlogical drains its slot, then factsync starts and is waited for. The figures are changed rows per second, the start included, until
the changes are durable in factsync's state (`local`) and until the fact store has acknowledged them all (`delivered`), and their
ratios to pg_recvlogical's, and the processor time of the process for each row, all of this included. The fact store is one that takes everything at once and keeps nothing, so that the figures are factsync's
own; with --embedded it is factsync's, in its process. Then, idle, the time from an application's commit to the fact store's acknowledgement, the time of a restart, and the resident memory.

Everything it starts lives in a temporary directory and ends with it. Needs what tests/run.sh installs.
"""
import argparse, glob, http.client, http.server, json, os, pathlib, shutil, socket, statistics, subprocess, sys, tempfile, threading, time, urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent

CASES = {
    # The key is the fact, so old rows need not be remembered.
    'keys': dict(
        tables='CREATE TABLE member (account_id int, team_id int, note int, PRIMARY KEY (account_id, team_id));',
        fill='INSERT INTO member SELECT n, n % 1000, 0 FROM generate_series(1, {rows}) n;',
        facts='has_role(User:_, member, Team:_)',
        query='SELECT account_id, team_id FROM member',
        change='INSERT INTO member VALUES ({rows} + k, k % 1000, 0)'),
    # Every change is a row of the log and none changes a fact: the price of looking.
    'unrelated': dict(
        tables='CREATE TABLE member (account_id int, team_id int, note int, PRIMARY KEY (account_id, team_id));',
        fill='INSERT INTO member SELECT n, n % 1000, 0 FROM generate_series(1, {rows}) n;',
        facts='has_role(User:_, member, Team:_)',
        query='SELECT account_id, team_id FROM member',
        change='UPDATE member SET note = note + 1 WHERE account_id = 1 + k % {rows} AND team_id = (1 + k % {rows}) % 1000'),
    # A remembered row for each primary key; a working set of 10,000 rows.
    'cached': dict(
        tables='CREATE TABLE repository (id int PRIMARY KEY, organization_id int);',
        fill='INSERT INTO repository SELECT n, n % 1000 FROM generate_series(1, {rows}) n;',
        facts='has_relation(Repository:_, parent, Organization:_)',
        query='SELECT id, organization_id FROM repository',
        change='UPDATE repository SET organization_id = organization_id + 1 WHERE id = 1 + (k::bigint * 7919) % 10000'),
    # The same over all rows, none of them twice in a row.
    'random': dict(
        tables='CREATE TABLE repository (id int PRIMARY KEY, organization_id int);',
        fill='INSERT INTO repository SELECT n, n % 1000 FROM generate_series(1, {rows}) n;',
        facts='has_relation(Repository:_, parent, Organization:_)',
        query='SELECT id, organization_id FROM repository',
        change='UPDATE repository SET organization_id = organization_id + 1 WHERE id = 1 + (k::bigint * 2654435761) % {rows}'),
    # Three tables; memberships change, the latest ones.
    'join': dict(
        tables='''CREATE TABLE account (id int PRIMARY KEY, suspended bool NOT NULL);
                  CREATE TABLE team (id int PRIMARY KEY, organization_id int NOT NULL);
                  CREATE TABLE member (id int PRIMARY KEY, account_id int, team_id int, role text);''',
        fill='''INSERT INTO account SELECT n, false FROM generate_series(1, {rows} / 4) n;
                INSERT INTO team SELECT n, n % 100 FROM generate_series(1, {rows} / 4) n;
                INSERT INTO member SELECT n, 1 + n % ({rows} / 4), 1 + n * 7 % ({rows} / 4), 'member' FROM generate_series(1, {rows} / 2) n;''',
        facts='has_role(User:_, String:_, Organization:_)',
        query='''SELECT account.id, member.role, team.organization_id FROM member
                 JOIN account ON account.id = member.account_id JOIN team ON team.id = member.team_id WHERE NOT account.suspended''',
        change='UPDATE member SET team_id = 1 + (team_id + 1) % ({rows} / 4) WHERE id = {rows} / 2 - (k::bigint * 2654435761) % {working}'),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--cases', default='keys,unrelated,cached,random,join', help='which, separated by commas')
    parser.add_argument('--sizes', default='1,10,1000', help='rows of a transaction')
    parser.add_argument('--rows', type=int, default=1_000_000, help='rows in the tables before the changes')
    parser.add_argument('--changes', type=int, default=200_000, help='changed rows for each figure')
    parser.add_argument('--rounds', type=int, default=3, help='how often; medians are shown')
    parser.add_argument('--commits', type=int, default=200, help='commits for the latency, one after the other')
    parser.add_argument('--factsync', default=str(ROOT / 'target/release/factsync'))
    parser.add_argument('--tcp', action='store_true', help='both readers over TCP instead of the socket in the file system')
    parser.add_argument('--embedded', action='store_true', help='with the embedded fact store')
    parser.add_argument('--working', type=int, help='how many of the latest members the case "join" changes; default: all, half of the rows')
    parser.add_argument('--latency-only', action='store_true', help='no throughput')
    parser.add_argument('--keep', action='store_true', help='keep the temporary directory')
    args = parser.parse_args()
    if not os.access(args.factsync, os.X_OK):
        sys.exit(f'{args.factsync} is missing; run cargo build --release')
    work = pathlib.Path(tempfile.mkdtemp(prefix='factsync-bench-'))
    work.chmod(0o755)
    server = Server(work, args.tcp)
    args.store = NullStore.start()
    try:
        print('| case | rows/transaction | pg_recvlogical | local | ratio | delivered | ratio | CPU/row |\n|---|---|---|---|---|---|---|---|')
        for name in args.cases.split(','):
            run_case(server, work, name, args)
    finally:
        server.stop()
        if not args.keep:
            shutil.rmtree(work, ignore_errors=True)


class Server:
    """A PostgreSQL of our own."""

    def __init__(self, work, tcp):
        places = [os.environ.get('PG_BIN', ''), *sorted(glob.glob('/usr/lib/postgresql/*/bin'))]
        self.bin = next((place for place in places if os.path.exists(place + '/initdb')), None)
        if not self.bin:
            sys.exit('PostgreSQL is missing; run tests/run.sh to install it')
        self.data, self.port = work / 'pg', free_port()
        # The way that both readers take.
        self.host = '127.0.0.1' if tcp else str(self.data)
        self.data.mkdir()
        if os.getuid() == 0:
            shutil.chown(self.data, 'postgres')
        self.run('initdb', '-D', self.data, '-U', 'postgres', '-A', 'trust')
        settings = dict(port=self.port, wal_level='logical', shared_buffers='512MB', max_wal_size='8GB', synchronous_commit='off', wal_sender_timeout=0,
                        unix_socket_directories=f"'{self.data}'", listen_addresses="'127.0.0.1'")
        with open(self.data / 'postgresql.conf', 'a') as file:
            file.writelines(f'{name} = {value}\n' for name, value in settings.items())
        self.run('pg_ctl', '-D', self.data, '-l', self.data / 'log', '-w', 'start')

    def run(self, program, *args):
        command = [f'{self.bin}/{program}', *map(str, args)]
        if os.getuid() == 0:
            command = ['runuser', '-u', 'postgres', '--', *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def sql(self, database, text):
        command = [f'{self.bin}/psql', '-X', '-q', '-At', '-v', 'ON_ERROR_STOP=1', '-h', str(self.data), '-p', str(self.port), '-U', 'postgres', '-d', database]
        return subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout.strip()

    def url(self, database):
        return f'postgres://postgres@{urllib.parse.quote(self.host, safe="")}:{self.port}/{database}'

    def stop(self):
        self.run('pg_ctl', '-D', self.data, '-m', 'immediate', 'stop')


class NullStore(http.server.BaseHTTPRequestHandler):
    """A fact store that costs as little as one can: every batch is accepted, no fact is kept."""

    protocol_version = 'HTTP/1.1'
    # Without these, head and body of an answer wait for each other's acknowledgement.
    wbufsize, disable_nagle_algorithm = -1, True

    @classmethod
    def start(cls):
        server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), cls)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f'http://127.0.0.1:{server.server_port}'

    def do_POST(self):
        left = int(self.headers['Content-Length'])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.answer(b'{"message":"ok"}')

    def do_GET(self):
        self.answer(b'[]')

    def answer(self, body):
        self.send_response(200)
        for name, value in (('Content-Type', 'application/json'), ('Content-Length', len(body)), ('OsoOffset', '1')):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


class Factsync:
    """`factsync run`."""

    def __init__(self, args, work, name, url):
        self.args, self.state, self.port, self.url = args, work / f'state-{name}', free_port(), url
        self.config = work / f'{name}.yaml'
        case = CASES[name]
        self.config.write_text(json.dumps(dict(
            version=1, source='postgres', facts={case['facts']: dict(db='app', query=case['query'])},
            dbs=dict(app=dict(connection_string=url)), sync=dict(slot='factsync_' + name, max_removals=dict(count=100000000, percent=100)))))
        self.log = open(work / f'{name}.log', 'ab')
        self.start()

    def start(self):
        began = time.perf_counter()
        command = [self.args.factsync, 'run', self.config, '--state', self.state, '--listen', f'127.0.0.1:{self.port}', '--limits', 'off', '--plan', 'unlimited',
                   '--target', 'embedded' if self.args.embedded else self.args.store]
        environment = {name: value for name, value in os.environ.items() if name not in ('OSO_AUTH', 'OSO_URL')}
        self.process = subprocess.Popen(list(map(str, command)), stderr=self.log, stdout=subprocess.DEVNULL, env=environment)
        while self.status().get('state') != 'streaming':
            if self.process.poll() is not None:
                sys.exit(f'factsync ended; see {self.log.name} (--keep)')
            time.sleep(0.005)
        return time.perf_counter() - began

    def get(self, path):
        try:
            connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=600)
            connection.request('GET', path)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        except (ConnectionError, ValueError):
            return 0, {}

    def status(self):
        return self.get('/v1/status')[1]

    def wait(self, position):
        # A wait ends within a minute.
        while (answer := self.get(f'/v1/wait?position={position}&timeout_ms=50000'))[0] != 200:
            assert answer[0] == 504, answer

    def reaches(self, position):
        """Until the position is durable here."""
        while number(self.status()['sources'][0]['position']) < number(position):
            time.sleep(0.01)

    def memory(self):
        status = pathlib.Path(f'/proc/{self.process.pid}/status').read_text()
        field = lambda name: int(next(line for line in status.splitlines() if line.startswith(name)).split()[1]) / 1024
        return field('VmRSS'), field('VmHWM')

    def cpu(self):
        """Seconds of the processor so far."""
        fields = pathlib.Path(f'/proc/{self.process.pid}/stat').read_text().rsplit(') ', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def run_case(server, work, name, args):
    case = CASES[name]
    fill = lambda text: text.format(rows=args.rows, working=args.working or args.rows // 2)
    database = f'bench_{name}'
    server.sql('postgres', f'CREATE DATABASE {database}')
    server.sql(database, fill(case['tables']) + fill(case['fill']) + 'VACUUM ANALYZE; CHECKPOINT;')
    factsync = Factsync(args, work, name, server.url(database))
    mode = factsync.status()['fact_types'][0]
    if mode['mode'] != 'incremental':
        print(f'{name}: mode is {mode["mode"]}, because {mode["reason"]}', file=sys.stderr)
    factsync.wait(server.sql(database, 'SELECT pg_current_wal_lsn()'))
    done = 0
    for size in [] if args.latency_only else map(int, args.sizes.split(',')):
        rounds = []
        for _ in range(args.rounds):
            rounds.append(measure(server, factsync, database, name, fill(case['change']), size, done, args.changes))
            done += args.changes
        plain, local, delivered, cpu = (statistics.median(column) for column in zip(*rounds))
        print(f'| {name} | {size} | {plain:,.0f}/s | {local:,.0f}/s | {local / plain:.2f} | {delivered:,.0f}/s | {delivered / plain:.2f} | {cpu * 1e6:.1f} µs |', flush=True)
    latency(server, factsync, database, name, fill(case['change']), done, args.commits)
    rss, peak = factsync.memory()
    factsync.stop()
    restart = factsync.start()
    print(f'\n{name}: resident {rss:.0f} MiB, peak {peak:.0f} MiB; streaming again {restart * 1000:.0f} ms after a restart, with {args.rows:,} rows\n', flush=True)
    factsync.stop()
    server.sql(database, f"SELECT pg_drop_replication_slot('factsync_{name}')")


def measure(server, factsync, database, name, change, size, done, changes):
    reference = 'reference'
    server.sql(database, f"SELECT pg_create_logical_replication_slot('{reference}', 'pgoutput')")
    factsync.stop()
    server.sql(database, f'''DO $$ BEGIN FOR k IN {done + 1}..{done + changes} LOOP {change};
        IF k % {size} = 0 THEN COMMIT; END IF; END LOOP; END $$''')
    # A commit behind the changes, and a position behind that commit, for both readers to arrive at.
    end = server.sql(database, "CHECKPOINT; SELECT pg_logical_emit_message(true, 'bench', ''); SELECT pg_current_wal_lsn()").splitlines()[-1]
    began = time.perf_counter()
    server.run('pg_recvlogical', '-h', server.host, '-p', server.port, '-U', 'postgres', '-d', database, '-S', reference, '--start', '-f', '/dev/null', '--endpos', end,
               '-o', 'proto_version=1', '-o', f'publication_names=factsync_{name}', '--no-loop')
    plain = time.perf_counter() - began
    server.sql(database, f"SELECT pg_drop_replication_slot('{reference}')")
    began = time.perf_counter()
    factsync.start()
    factsync.reaches(end)
    local = time.perf_counter() - began
    factsync.wait(end)
    delivered = time.perf_counter() - began
    return changes / plain, changes / local, changes / delivered, factsync.cpu() / changes


def latency(server, factsync, database, name, change, done, commits):
    """One psql session that commits, one connection that waits for each commit's position."""
    command = [f'{server.bin}/psql', '-X', '-q', '-At', '-h', str(server.data), '-p', str(server.port), '-U', 'postgres', '-d', database]
    session = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    connection = http.client.HTTPConnection('127.0.0.1', factsync.port, timeout=60)
    # The server sends what is on its disk; without this the position asked for is one from before the commit.
    session.stdin.write('SET synchronous_commit = on;\n')
    times = []
    for k in range(done + 1, done + 1 + commits):
        session.stdin.write(change.replace('k::bigint', f'{k}::bigint').replace('k %', f'{k} %').replace('k *', f'{k} *').replace('+ k', f'+ {k}') + ';\nSELECT pg_current_wal_lsn();\n')
        session.stdin.flush()
        position = session.stdout.readline().strip()
        began = time.perf_counter()
        connection.request('GET', f'/v1/wait?position={position}&timeout_ms=60000')
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        times.append((time.perf_counter() - began) * 1000)
    session.stdin.close()
    session.wait()
    times.sort()
    print(f'\n{name}: commit to acknowledged by the fact store, idle, {commits} commits: p50 {times[len(times) // 2]:.1f} ms, '
          f'p99 {times[len(times) * 99 // 100]:.1f} ms', flush=True)


def number(position):
    high, low = (position or '0/0').split('/')
    return int(high, 16) << 32 | int(low, 16)


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


if __name__ == '__main__':
    main()
