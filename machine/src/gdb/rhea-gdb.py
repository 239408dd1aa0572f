# For gdb with rhea's stub: source this file, then 'target remote'.
#
# The stub gives $pc as a linear address (CS base + IP), so break, x/i, continue and stepping work in real mode as they do
# elsewhere. What gdb does not know is in which mode the CPU is: it takes all code for 64-bit code. With this script x/i and
# disassemble follow the CPU's mode, and every stop in 16- or 32-bit code shows CS:IP.
#
#   rhea-mode            mode, CS:IP, privilege level
#   rhea-arch i386|x86-64   what gdb takes the CPU for: backtraces and finish through 32-bit code need i386. (For a 32-bit ELF
#                        file say so before gdb connects: rhea -gdb tcp::1234,arch=i386.)
#   rhea-break LOCATION [if CONDITION]   break in the process that runs now alone, told by CR3
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
        """Leaves code of the kind that gdb takes it for to gdb, and has the stub decode the rest."""

        def __init__(self):
            super().__init__("rhea")

        def __call__(self, info):
            bits = code_bits()
            if bits is None or bits != 16 and (bits == 64) == (info.architecture.name() == "i386:x86-64"):
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


class Arch(gdb.Command):
    """Take the CPU for a 32-bit one (i386), or for a 64-bit one (x86-64)."""

    def __init__(self):
        super().__init__("rhea-arch", gdb.COMMAND_STATUS)

    def invoke(self, arg, from_tty):
        if arg not in ("i386", "x86-64"):
            raise gdb.GdbError("i386 or x86-64")
        said = gdb.execute("maintenance packet Qrhea.arch:" + arg, to_string=True)
        if '"OK"' not in said:
            raise gdb.GdbError("the stub does not answer")
        # gdb asks for the description anew, and warns that it is not of the architecture which is set then.
        try:
            gdb.execute("unset tdesc filename", to_string=True)
        except gdb.error:
            pass
        gdb.execute("set architecture " + ("i386:x86-64" if arg == "x86-64" else arg), to_string=True)
        gdb.execute("maintenance flush register-cache", to_string=True)


class Break(gdb.Command):
    """Break at a location in the process that runs now alone, as CR3 tells: rhea-break LOCATION [if CONDITION]."""

    # What is not an address: identifiers of address spaces (PCID), and the half of the tables that is the kernel's own.
    TABLES = 0x000FFFFFFFFFE000

    def __init__(self):
        super().__init__("rhea-break", gdb.COMMAND_BREAKPOINTS, gdb.COMPLETE_LOCATION)

    def invoke(self, arg, from_tty):
        location, _, condition = arg.partition(" if ")
        if not location.strip():
            raise gdb.GdbError("where?")
        here = "($cr3 & %#x) == %#x" % (self.TABLES, register("cr3") & self.TABLES)
        gdb.execute("break %s if %s" % (location, here + (" && (%s)" % condition if condition.strip() else "")))


class Linear(gdb.Function):
    """Linear address of a segment and an offset in real mode."""

    def __init__(self):
        super().__init__("linear")

    def invoke(self, segment, offset):
        return (int(segment) << 4) + (int(offset) & 0xFFFF)


Mode()
Phys()
Arch()
Break()
Linear()
