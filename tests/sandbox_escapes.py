"""Answers that try to get out of a sandbox, or to be called right without being it. All are tested by TESTS."""

from __future__ import annotations

TESTS = "assert f(1) == 2\nassert f(2) == 3\n"

#: {place} is a folder outside, {parent} the process that asks, {port} one that it listens to, {word} a mark to find.
ESCAPES = {
    "fork bomb": """
import os
def f(x):
    while True:
        os.fork()
""",
    "memory bomb": """
def f(x):
    held = []
    while True:
        held.append(bytearray(16 << 20))
""",
    "endless output": """
import os
def f(x):
    while True:
        print("x" * 1000)
""",
    "endless output past print": """
import os
def f(x):
    while True:
        os.write(1, b"x" * 1000)
""",
    "sleep": """
import time
def f(x):
    time.sleep(3600)
    return x + 1
""",
    "write outside": """
def f(x):
    with open("{place}/written", "w") as file:
        file.write("x")
    return x + 1
""",
    "change modes outside": """
import os
def f(x):
    os.chmod("{place}/secret", 0o777)
    return x + 1
""",
    "read $HOME": """
def f(x):
    with open("{place}/secret") as file:
        return x + len(file.read())
""",
    "socket": """
import socket
def f(x):
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
    return x + 1
""",
    "DNS": """
import socket
def f(x):
    line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    line.sendto(b"x", ("127.0.0.1", {port}))
    return x + 1
""",
    "kill of the parent": """
import os, signal
def f(x):
    for number in ({parent}, os.getppid()):
        if number > 1:
            os.kill(number, signal.SIGCONT)
    return x + 1 if number > 1 else None
""",
    "limits of the parent": """
import resource
def f(x):
    resource.prlimit({parent}, resource.RLIMIT_NOFILE)
    return x + 1
""",
    "leftover child": """
import os, sys
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)", "{word}"])
        os._exit(0)
    return x + 2
""",
    "os._exit(0)": "import os\nos._exit(0)\n",
    "os._exit(0) when called": "import os\ndef f(x):\n    os._exit(0)\n",
    "sys.exit(0)": "import sys\ndef f(x):\n    sys.exit(0)\n",
    "__eq__": """
class Right:
    def __eq__(self, other): return True
def f(x):
    return Right()
""",
    "__eq__ of a number": """
class Right(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x):
    return Right(7)
""",
    "patched assert": """
import builtins
class Never(Exception):
    pass
builtins.AssertionError = Never
def f(x):
    return 0
""",
    "reading the tests": """
import gc, glob, os, re, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield str(frame.f_globals) + str(frame.f_locals)
        frame = frame.f_back
    yield from (str(thing) for thing in gc.get_objects() if isinstance(thing, (str, tuple, list)))
    for path in glob.glob("/proc/[0-9]*/cmdline") + glob.glob("/proc/[0-9]*/mem") + glob.glob("../*/*"):
        try:
            yield open(path).read()
        except Exception:
            pass
def f(x):
    said = [a for text in texts() for a in re.findall(r"assert f\\(" + str(x) + r"\\) == (\\d)", text)]
    return int(said[0])
""",
    "stdout forging": """
import os
for number in range(3, 32):
    try:
        os.write(number, b"('passed', '')\\n('returned', 2, {{}})\\n('passed', '')\\n")
    except OSError:
        pass
os.write(1, b"('passed', '')\\n")
print("passed")
def f(x):
    return 0
""",
    "an exception that tests may catch": "def f(x):\n    raise SystemExit(0)\n",
}
