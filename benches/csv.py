#!/usr/bin/env python3
"""A CSV file of ten million rows: what `reconcile` and `run` take for it, and what another source waits for meanwhile.

    cargo build --release && benches/csv.py
    ROWS=1000000 benches/csv.py

`reconcile` prints what an empty fact store lacks. `run` starts with an empty state directory and follows the file beside a small one,
which is replaced again and again until the large one is read, stored and compared; how long each replacement takes until the fact store
lists its fact is measured. Then a row is appended to the large one. Deliveries of the rest go on and are not waited for.

Everything it starts is in a temporary directory (TMPDIR) and ends with it.
"""

import hashlib
import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
ROWS = int(os.environ.get("ROWS", "10000000"))
FACTSYNC = os.environ.get("FACTSYNC", str(ROOT / "target/release/factsync"))
KEY = "e_0123456789_12345_osotesttoken01xiIn"
# Between two replacements of the small file.
PAUSE = 0.2
# Between two looks for its fact.
LOOK = 0.02
# Longer than anything takes at ten million rows on a slow machine.
DEADLINE = 1800


def write_rows(path, rows):
    with open(path, "w") as file:
        file.write("user,role,org\n")
        for n in range(rows):
            # In no order that means anything: 7,919 is a prime that divides no round number.
            file.write(f"user_{n * 7919 % rows:08},{('member', 'admin', 'owner')[n % 3]},{n % 1000}\n")


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config(work, name, predicate):
    path = work / f"{name}.csv"
    yaml = work / f"{name}.yaml"
    yaml.write_text(
        f"version: 1\nsource: csv\nfacts:\n  {predicate}(User:_, String:_, Organization:_):\n"
        f"    path: {path}\n    fields: [user, role, org]\n"
    )
    return path, yaml


class Run:
    """A factsync that is followed by its status, and its peak memory."""

    def __init__(self, *args):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OSO_")}
        command = [FACTSYNC, *map(str, args), "--listen", "127.0.0.1:0", "--limits", "off"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"listening on (http://[0-9.:]+)", line):
                self.url = found[1]
                break
        else:
            sys.exit("".join(self.log))
        threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True).start()

    def get(self, path):
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return answer.read()

    def source(self, path):
        lines = json.loads(self.get("/v1/status"))["sources"]
        return next(line for line in lines if line["name"] == str(path))

    def visible(self, user):
        """Seconds until the fact store lists the fact of the small file's user. Not `/v1/wait`, which answers nobody during a first load."""
        begun = time.monotonic()
        while user.encode() not in self.get("/api/facts?predicate=is_member"):
            if time.monotonic() - begun > DEADLINE:
                sys.exit(f"{user} never arrived")
            time.sleep(LOOK)
        return time.monotonic() - begun

    def until(self, path, position):
        """Seconds until a source stands at a position in the desired facts, delivered or not."""
        begun = time.monotonic()
        while self.source(path)["position"] != position:
            if self.process.poll() is not None or time.monotonic() - begun > DEADLINE:
                sys.exit(f"{path} never got to {position}:\n" + "".join(self.log[-20:]))
            time.sleep(PAUSE)
        return time.monotonic() - begun

    def peak(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def reconcile(work, yaml):
    store = Run("serve", "--state", work / "empty")
    begun = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [FACTSYNC, "reconcile", str(yaml), "--target", store.url, "--plan", "unlimited", "--summarized-output"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    peak = [0]

    def look():
        while process.poll() is None:
            try:
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                peak[0] = max(peak[0], int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)
            except (OSError, TypeError):
                pass
            time.sleep(0.05)

    looker = threading.Thread(target=look)
    looker.start()
    answer = json.loads(process.stdout.read())
    if process.wait() != 0:
        sys.exit("reconcile failed")
    looker.join()
    seconds = time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    added = answer["fact_types"][0]["add_count"]
    assert added == ROWS, answer
    print(f"reconcile: {seconds:.1f} s ({cpu:.1f} s of CPU), peak {peak[0]} MiB")
    store.stop()


def follow(work, large, small):
    (large, large_yaml), (small, small_yaml) = large, small
    process = Run("run", large_yaml, small_yaml, "--state", work / "state")
    begun = time.monotonic()
    waits, done = [], threading.Event()

    def replace():
        n = 0
        while not done.is_set():
            n += 1
            new = work / "new.csv"
            new.write_text(f"user,role,org\nuser_{n},member,1\n")
            os.replace(new, small)
            waits.append((process.visible(f"user_{n}"), time.monotonic() - begun))
            time.sleep(PAUSE)

    replacing = threading.Thread(target=replace)
    replacing.start()
    process.until(large, digest(large))
    loaded = time.monotonic() - begun
    facts = json.loads(process.get("/v1/status"))["fact_types"][0]["facts"]
    assert facts == ROWS, facts
    print(f"run: read, stored and compared after {loaded:.1f} s, peak {process.peak()} MiB")
    done.set()
    replacing.join()
    seconds, at = max(waits)
    median = sorted(waits)[len(waits) // 2][0]
    print(f"meanwhile another source: {len(waits)} changes, median {median:.2f} s, longest {seconds:.1f} s (ended at {at:.0f} s)")
    with open(large, "a") as file:
        file.write("one_more,member,1\n")
    position = digest(large)
    print(f"one row more: {process.until(large, position):.1f} s, peak {process.peak()} MiB")
    process.stop()


def main():
    print(f"{ROWS} rows, load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="factsync-bench-") as folder:
        work = pathlib.Path(folder)
        large, small = config(work, "large", "has_role"), config(work, "small", "is_member")
        write_rows(large[0], ROWS)
        write_rows(small[0], 1)
        print(f"{large[0].stat().st_size >> 20} MiB")
        reconcile(work, large[1])
        follow(work, large, small)
    print(f"load average {os.getloadavg()[0]:.1f}")


main()
