# What a write watchpoint on the page of the user's stack costs: stack_watch.py BEGIN END COMMAND...
#
# COMMAND is an emulator with its guest on a serial line to stdout, without -gdb. The guest prints a line with BEGIN when its
# work starts and one with END when it is done. Runs it twice, without a debugger and with a client of the stub that sets a
# watchpoint at the far end of the page in which RSP is in user mode, and prints the CPU seconds of the work.

import os
import resource
import socket
import subprocess
import sys
import tempfile
import time

BEGIN, END, COMMAND = sys.argv[1], sys.argv[2], sys.argv[3:]
PATH = os.path.join(tempfile.mkdtemp(), "socket")
TICK = os.sysconf("SC_CLK_TCK")


class Stub:
    def __init__(self):
        self.s = socket.socket(socket.AF_UNIX)
        self.s.connect(PATH)
        self.data = b""

    def send(self, payload):
        self.s.sendall(b"$%s#%02x" % (payload, sum(payload) & 255))

    def packet(self):
        while True:
            start = self.data.find(b"$")
            end = self.data.find(b"#", start)
            if start >= 0 and 0 <= end <= len(self.data) - 3:
                found, self.data = self.data[start + 1:end], self.data[end + 3:]
                self.s.sendall(b"+")
                return found
            more = self.s.recv(65536)
            if not more:
                sys.exit("the stub has gone")
            self.data += more

    def ask(self, payload):
        self.send(payload)
        return self.packet()

    def register(self, n):
        return int.from_bytes(bytes.fromhex(self.ask(b"p%x" % n).decode()), "little")

    def stop_in_user_mode(self):
        while True:
            self.send(b"vCont;c")
            time.sleep(0.02)
            self.s.sendall(b"\x03")
            self.packet()
            if self.register(18) & 3 == 3:  # CS
                return self.register(7)  # RSP


def seconds(pid):
    fields = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def run(watch):
    p = subprocess.Popen(COMMAND + ["-gdb", "unix:" + PATH], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    start = None
    for line in p.stdout:
        if "VERBOSE" in os.environ: print(line)
        if BEGIN.encode() in line:
            start = seconds(p.pid)
            if watch:
                time.sleep(0.1)
                stub = Stub()
                stub.ask(b"?")
                rsp = stub.stop_in_user_mode()
                at = rsp & ~0xFFF | (0 if rsp & 0x800 else 0xFF8)
                assert stub.ask(b"Z2,%x,8" % at) == b"OK"
                print("rsp %#x, watched %#x" % (rsp, at))
                stub.send(b"vCont;c")
        if END.encode() in line and start is not None:
            took = seconds(p.pid) - start
            if watch:
                stub.s.setblocking(False)
                try:
                    print("the stub says", stub.s.recv(200))
                except BlockingIOError:
                    pass
            p.kill()
            p.wait()
            os.path.exists(PATH) and os.unlink(PATH)
            return took
    sys.exit("no %s, exit status %s" % (END, p.wait()))


plain = min(run(False) for _ in range(int(os.environ.get("RUNS", "1"))))
watched = min(run(True) for _ in range(int(os.environ.get("RUNS", "1"))))
print("without %.2f s, with %.2f s of CPU: %.2f x" % (plain, watched, watched / plain))
