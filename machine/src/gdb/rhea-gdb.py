# For gdb with rhea's stub: source this file, then 'target remote'.
#
# The stub gives $pc as a linear address (CS base + IP), so break, x/i, continue and stepping work in real mode as they do
# elsewhere. What gdb does not know is in which mode the CPU is: it takes all code for 64-bit code. With this script x/i and
# disassemble follow the CPU's mode, and every stop in 16- or 32-bit code shows CS:IP.
#
#   rhea-mode            mode, CS:IP, privilege level
#   rhea-phys on|off     addresses are physical, or linear again
#   $linear(cs, ip)      linear address in real mode:  break *$linear(0x1000, 0x20)

import re
import gdb

try:
    import gdb.disassembler as disassembler
except ImportError:  # before gdb 13
    disassembler = None


def register(name):
    return int(gdb.parse_and_eval("$" + name)) & 0xFFFFFFFFFFFFFFFF


def code_bits():
    """16, 32 or 64: size of the code that runs; None where there is no such register."""
    try:
        attr, efer = register("cs_attr"), register("efer")
    except gdb.error:
        return None
    if efer & 1 << 10 and attr & 1 << 21:
        return 64
    return 32 if attr & 1 << 22 else 16


def mode_name():
    bits = code_bits()
    if register("cr0") & 1 == 0:
        return "real mode" if bits == 16 else "real mode, %d-bit code" % bits
    if register("eflags") & 1 << 17:
        return "virtual-8086 mode"
    if bits == 64:
        return "64-bit mode"
    return "%s, %d-bit code" % ("compatibility mode" if register("efer") & 1 << 10 else "protected mode", bits)


def decode(address):
    """(length, text) of the instruction at a linear address, by the stub, in the mode of the CPU."""
    text = gdb.execute("monitor x/1i 0x%x" % address, to_string=True)
    found = re.match(r"0x[0-9a-f]+:  ((?:[0-9a-f]{2} )*[0-9a-f]{2}) +(.*)", text)
    return (len(found.group(1).split()), found.group(2).strip()) if found else None


if disassembler:

    class ByMode(disassembler.Disassembler):
        """Leaves 64-bit code to gdb, and has the stub decode the rest."""

        def __init__(self):
            super().__init__("rhea")

        def __call__(self, info):
            if code_bits() in (None, 64):
                return None
            found = decode(info.address)
            if found is None:
                info.read_memory(1)  # says that it cannot be read
                return None
            return disassembler.DisassemblerResult(length=found[0], string=found[1])

    disassembler.register_disassembler(ByMode(), None)


def on_stop(_):
    if code_bits() not in (None, 64):
        gdb.write("[%04x:%04x, %s]\n" % (register("cs") & 0xFFFF, register("ip"), mode_name()))


gdb.events.stop.connect(on_stop)


class Mode(gdb.Command):
    """Show the CPU's mode, CS:IP and privilege level."""

    def __init__(self):
        super().__init__("rhea-mode", gdb.COMMAND_STATUS)

    def invoke(self, _, from_tty):
        gdb.write("%s, %04x:%04x, CPL %d\n" % (mode_name(), register("cs") & 0xFFFF, register("ip"), register("cpl")))


class Phys(gdb.Command):
    """Take addresses as physical ones (on), or as linear ones (off)."""

    def __init__(self):
        super().__init__("rhea-phys", gdb.COMMAND_DATA)

    def invoke(self, arg, from_tty):
        if arg not in ("on", "off"):
            raise gdb.GdbError("on or off")
        gdb.execute("maintenance packet Qqemu.PhyMemMode:%d" % (arg == "on"), to_string=True)
        gdb.execute("maintenance flush dcache", to_string=True)


class Linear(gdb.Function):
    """Linear address of a segment and an offset in real mode."""

    def __init__(self):
        super().__init__("linear")

    def invoke(self, segment, offset):
        return (int(segment) << 4) + (int(offset) & 0xFFFF)


Mode()
Phys()
Linear()
