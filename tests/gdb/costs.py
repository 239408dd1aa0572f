# What debugging costs: costs.py RHEA GUEST.elf
#
# GUEST.elf is made by tests/tests/gdb.rs (gdb-guest.elf in its scratch directory). A client of the stub, without gdb, sets something
# and measures the CPU time of all of rhea's threads for each of the guest's rounds, against that with nothing set, in turn: the host
# is not alike from minute to minute. Best of RUNS. stack_watch.py does the last line with any guest.

import os
import re
import socket
import subprocess
import sys
import tempfile
import time

RHEA, ELF = sys.argv[1:]
RUNS, SECONDS = int(os.environ.get("RUNS", "5")), float(os.environ.get("SECONDS", "1"))
PATH = os.path.join(tempfile.mkdtemp(), "socket")


def said(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


SYMBOLS = {name: int(at, 16) for at, _, name in (line.split() for line in said("nm", ELF).splitlines())}
# "counter = i", 20000 times a round.
LINE = int(re.search(r"address (0x\w+)", said("gdb", "-nx", "-batch", "-ex", "info line guest.c:97", ELF)).group(1), 16)
# i == -1: what lies at RBP - 4, extended, and 0 - 1 (gdb, "Agent Expressions").
FALSE = "26000622040319162022002201031327"

p = subprocess.Popen(
    [RHEA, "-m", "16", "-cpu", "max", "-display", "none", "-nodefaults", "-no-reboot", "-gdb", "unix:" + PATH, "-kernel", ELF])
while not os.path.exists(PATH):
    time.sleep(0.05)
s = socket.socket(socket.AF_UNIX)
s.connect(PATH)
data = b""


def packet():
    global data
    while True:
        start = data.find(b"$")
        end = data.find(b"#", start)
        if start >= 0 and 0 <= end <= len(data) - 3:
            found, data = data[start + 1:end], data[end + 3:]
            s.sendall(b"+")
            return found.decode()
        more = s.recv(65536)
        if not more:
            sys.exit("the stub has gone")
        data += more


def send(payload):
    s.sendall(b"$%s#%02x" % (payload.encode(), sum(payload.encode()) & 255))


def ask(payload):
    send(payload)
    return packet()


def check(payload):
    if ask(payload) != "OK":
        sys.exit("the stub refuses " + payload)


def go(seconds):
    send("vCont;c")
    time.sleep(seconds)
    s.sendall(b"\x03")
    stop = packet()
    if not stop.startswith("T02"):
        sys.exit("stopped by " + stop)


def number(name):
    return int.from_bytes(bytes.fromhex(ask("m%x,4" % SYMBOLS[name])), "little")


def nanoseconds():
    tasks = "/proc/%d/task" % p.pid
    return sum(int(open("%s/%s/schedstat" % (tasks, t)).read().split()[0]) for t in os.listdir(tasks))


def round_time():
    """CPU nanoseconds of a round."""
    go(0.3)
    before, rounds = nanoseconds(), number("rounds")
    go(SECONDS)
    return (nanoseconds() - before) / max(1, number("rounds") - rounds)


def compare(points):
    """Best times of a round without and with breakpoints and watchpoints: (kind and address and size, what follows)."""
    without, with_it = [], []
    for _ in range(RUNS):
        without.append(round_time())
        for point, more in points:
            check("Z" + point + more)
        with_it.append(round_time())
        for point, _ in points:
            check("z" + point)
    return min(without), min(with_it)


ask("qSupported:swbreak+;hwbreak+")
ask("?")
go(1)
alone, took = compare([])
print("nothing set: %.1f us a round; and again: %.2f x" % (alone / 1e3, took / alone))
alone, took = compare([("0,%x,1" % LINE, ";X%x,%s" % (len(FALSE) // 2, FALSE))])
print("a condition that is false, 20000 passes a round: %.3f us a pass" % ((took - alone) / 20000 / 1e3))
alone, took = compare([("0,%x,1" % (0x400000 + 0x308 * i), "") for i in range(1000)])
print("1000 breakpoints elsewhere: %.2f x" % (took / alone))
alone, took = compare([("2,%x,1" % SYMBOLS["page"], "")])
print("a write watchpoint on a page that is written once a round: %.2f x" % (took / alone))
alone, took = compare([("2,%x,1" % ((SYMBOLS["stack_top"] - 1) & ~0xFFF), "")])
print("a write watchpoint on the top page of the stack: %.2f x" % (took / alone))
p.kill()
