# Runs a table of checks in gdb: gdb -nx -batch -ex 'python TABLE=...; TARGET=...' -x run.py
#
# A check is a line '> command' and the lines after it: regular expressions that must be found in what gdb says, in this
# order. Commands of our own:
#   @interrupt SECONDS COMMAND   Ctrl-C after that time
#   @within SECONDS COMMAND      fails if it takes longer
#   @times N COMMAND             the last of N
#   @not PATTERN COMMAND         must not be said
#   @connect / @vanish           'target remote', and a client that goes without a word

import os
import re
import signal
import sys
import tempfile
import threading
import time

import gdb

STDOUT = os.dup(1)
STDERR = os.dup(2)
CAPTURE = tempfile.TemporaryFile()

gdb.execute("set pagination off")
gdb.execute("set confirm off")
gdb.execute("set width 0")
gdb.execute("set style enabled off")


def parse(path):
    checks = []
    for n, line in enumerate(open(path), 1):
        line = line.rstrip("\n")
        if line.startswith("> "):
            checks.append((n, line[2:], []))
        elif line and not line.startswith("#"):
            checks[-1][2].append(line)
    return checks


def run(command):
    word, _, rest = command.partition(" ")
    if word == "@interrupt":
        seconds, _, rest = rest.partition(" ")
        timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            return run(rest)
        finally:
            timer.cancel()
    if word == "@within":
        seconds, _, rest = rest.partition(" ")
        start = time.time()
        # What never comes must not hold up all else.
        timer = threading.Timer(2 * float(seconds) + 10, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            said = run(rest)
        finally:
            timer.cancel()
        took = time.time() - start
        return said if took <= float(seconds) else said + "\n(took %.3f s)\n" % took
    if word == "@times":
        count, _, rest = rest.partition(" ")
        for _ in range(int(count)):
            said = run(rest)
        return said
    if word == "@connect":
        return run("target remote " + TARGET)
    try:
        gdb.execute(command)
        return ""
    except gdb.error as e:
        return "error: %s\n" % e


def captured(command):
    """What gdb says. (What it says of a stop does not come back from gdb.execute.)"""
    gdb.flush()
    CAPTURE.seek(0)
    CAPTURE.truncate()
    # What the monitor says goes to standard error.
    os.dup2(CAPTURE.fileno(), 1)
    os.dup2(CAPTURE.fileno(), 2)
    try:
        more = run(command)
    finally:
        gdb.flush()
        gdb.flush(gdb.STDERR)
        os.dup2(STDOUT, 1)
        os.dup2(STDERR, 2)
    CAPTURE.seek(0)
    return CAPTURE.read().decode(errors="replace") + more


def check(command, wanted):
    """What is wrong, and what gdb said."""
    forbidden = None
    if command.startswith("@not "):
        _, forbidden, command = command.split(" ", 2)
    said = captured(command)
    if forbidden and re.search(forbidden, said):
        return "there is %r" % forbidden, said
    if "(took " in said:
        return "too slow", said
    at = 0
    for pattern in wanted:
        found = re.compile(pattern, re.M).search(said, at)
        if not found:
            return "no %r" % pattern, said
        at = found.end()
    return None, said


failed = 0
checks = parse(TABLE)
for n, command, wanted in checks:
    wrong, said = check(command, wanted)
    if wrong:
        failed += 1
        print("FAILED line %d: %s\n  %s in:\n%s" % (n, command, wrong, said))
        if failed > 10:
            break
    elif "RHEA_GDB_VERBOSE" in os.environ:
        print("line %d: %s\n%s" % (n, command, said))
print("checks: %d, failed: %d" % (len(checks), failed))
sys.stdout.flush()
gdb.flush()
os._exit(1 if failed else 0)
