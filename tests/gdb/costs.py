# What debugging costs: gdb -nx -batch -ex 'python RHEA="target/release/rhea"' -x tests/gdb/costs.py GUEST.elf
#
# GUEST.elf is made by tests/tests/gdb.rs (its scratch directory), or by hand:
#   cd tests/gdb; cc -m64 -mno-red-zone -O0 -g -ffreestanding -fno-pic -no-pie -static -nostdlib -mgeneral-regs-only
#       -fno-stack-protector -fcf-protection=none -Wl,-T,guest.ld start.S guest.c -o GUEST.elf
# CPU time of all of rhea's threads for each of the guest's rounds, best of RUNS, against that without anything set.
# stack_watch.py does the last line with any guest.

import os
import signal
import subprocess
import tempfile
import threading
import time

import gdb

RUNS, SECONDS = int(os.environ.get("RUNS", "5")), float(os.environ.get("SECONDS", "1"))
PATH = os.path.join(tempfile.mkdtemp(), "socket")
for setting in ("pagination off", "confirm off", "breakpoint pending off"):
    gdb.execute("set " + setting)
ELF = gdb.current_progspace().filename
RHEA_PROCESS = subprocess.Popen(
    [RHEA, "-m", "16", "-cpu", "max", "-display", "none", "-nodefaults", "-no-reboot", "-gdb", "unix:" + PATH, "-kernel", ELF])


def nanoseconds():
    tasks = "/proc/%d/task" % RHEA_PROCESS.pid
    return sum(int(open("%s/%s/schedstat" % (tasks, t)).read().split()[0]) for t in os.listdir(tasks))


def go(seconds):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    gdb.execute("continue", to_string=True)
    timer.cancel()


def value(expression):
    return int(gdb.parse_and_eval(expression))


def round_time():
    """CPU nanoseconds of a round."""
    go(0.3)
    before, rounds = nanoseconds(), value("rounds")
    go(SECONDS)
    return (nanoseconds() - before) / max(1, value("rounds") - rounds)


def compare(*commands, times=RUNS):
    """Best of RUNS without and with what the commands set, in turn: the host is not alike from minute to minute."""
    without, with_it = [], []
    for _ in range(times):
        without += [round_time() for _ in range(RUNS // times)]
        for c in commands:
            gdb.execute(c, to_string=True)
        with_it += [round_time() for _ in range(RUNS // times)]
        gdb.execute("delete")
    return min(without), min(with_it)


while not os.path.exists(PATH):
    time.sleep(0.05)
gdb.execute("target remote " + PATH, to_string=True)
go(1)
alone, took = compare()
print("nothing set: %.1f us a round; and again: %.2f x" % (alone / 1e3, took / alone))
alone, took = compare("break guest.c:97 if i == -1")
print("a condition that is false, 20000 passes a round: %.3f us a pass" % ((took - alone) / 20000 / 1e3))
alone, took = compare(*["break *%#x" % (0x400000 + 0x308 * i) for i in range(1000)], times=1)  # gdb takes long to set them
print("1000 breakpoints elsewhere: %.2f x" % (took / alone))
alone, took = compare("watch page[0]")
print("a write watchpoint on a page that is written once a round: %.2f x" % (took / alone))
gdb.execute("tbreak count_to")
gdb.execute("continue", to_string=True)
alone, took = compare("watch *(char *) %#x" % (value("(long) $rsp") & ~0xfff))
print("a write watchpoint on the top page of the stack: %.2f x" % (took / alone))
gdb.execute("kill")
RHEA_PROCESS.wait()
