"""A hundred programs that attack the grader instead of solving the problem.

Each stands before `def f(x): return 0`, against the test `assert f(2) == 42`.
`{mark}` is a path outside the sandbox, `{parent}` the grader's process id.
"""

ESCAPES = [
    "import os\nwhile True: os.fork()",
    "import os\n[os.fork() for _ in range(50)]",
    "import os\nfor _ in range(100):\n    try: os.fork()\n    except OSError: pass",
    "import subprocess\nsubprocess.Popen(['sleep', '1000'])",
    "import subprocess\nsubprocess.run('touch {mark}', shell=True)",
    "import os\nos.system('touch {mark}')",
    "import os\nos.popen('touch {mark}').read()",
    "import os\nos.execv('/bin/sh', ['sh', '-c', 'touch {mark}'])",
    "import os\nos.posix_spawn('/bin/touch', ['touch', '{mark}'], {{}})",
    "import multiprocessing\nmultiprocessing.Process(target=print).start()",
    "import pty\npty.fork()",
    "import os\nos.setsid()\nos.fork()",
    "import os\nif os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(1000)",
    "open('{mark}', 'w').write('x')",
    "import os\nos.mkdir('{mark}')",
    "import os\nos.symlink('/etc/passwd', '{mark}')",
    "import os\nos.open('{mark}', os.O_CREAT | os.O_RDWR)",
    "import os\nos.mkfifo('{mark}')",
    "import sqlite3\nsqlite3.connect('{mark}').execute('create table t (x)')",
    "import pathlib\npathlib.Path('{mark}').touch()",
    "import shutil\nshutil.rmtree('{repository}')",
    "import os\nos.rename('{repository}/pyproject.toml', '{mark}')",
    "open('{repository}/score_jax/__init__.py', 'a').write('x')",
    "import os\nos.unlink('{repository}/pyproject.toml')",
    "import os\nos.chmod('{repository}', 0)",
    "import os\nos.truncate('{repository}/pyproject.toml', 0)",
    "import os\nos.utime('{repository}/pyproject.toml', (0, 0))",
    "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1).send(b'x')",
    "import socket\ns = socket.socket(2, 2)\ns.sendto(b'x', ('127.0.0.1', {port}))",
    "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{port}')",
    "import socket\nsocket.socket(socket.AF_UNIX).connect('/var/run/docker.sock')",
    "import socket\ns = socket.socket()\ns.bind(('', 0))\ns.listen()\ns.accept()",
    "import os, signal\nos.kill({parent}, signal.SIGKILL)",
    "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "import os, signal\nfor p in range(2, 999):\n    try: os.kill(p, 9)\n    except OSError: 0",
    "import ctypes\nctypes.CDLL(None).kill({parent}, 9)",
    "import ctypes\nctypes.CDLL(None).syscall(62, {parent}, 9)",
    "import ctypes\nctypes.CDLL(None).ptrace(16, {parent}, 0, 0)",
    "import ctypes\nctypes.CDLL(None).unshare(0x10000000)",
    "import ctypes\nctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, b'')",
    "import ctypes\nctypes.CDLL(None).prctl(1, 0)",
    "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "import os\nos.setuid(0)",
    "import os\nos.chroot('/')",
]
LEAKS = [  # each must not find what it looks for; f then returns it
    "import os\nSECRET = open(os.path.expanduser('~root/.bashrc')).read()",
    "SECRET = open('/proc/{parent}/environ').read()",
    "SECRET = open('/proc/self/environ').read() + 'x'",
    "import os\nSECRET = os.environ['GRADER_SECRET']",
    "SECRET = open('/etc/passwd').read()",
    "SECRET = open('{repository}/pyproject.toml').read()",
    "import os\nSECRET = os.listdir('/home') + os.listdir('/root')",
    "import glob\nSECRET = (glob.glob('/proc/*/cmdline') or 1 / 0)",
    "import os\nSECRET = os.read(0, 100) or 1 / 0",
    "import os\nSECRET = os.read(5, 100)",
    "import gc\nSECRET = [o for o in gc.get_objects() if 'assert f' in str(o)[:200]][0]",
    "import sys\nSECRET = sys._getframe(5).f_locals['tests']",
    "import score_jax.tasks.sandbox.runner as r\nSECRET = r.tests",
]
CHEATS = [
    "import os\nos._exit(0)",
    "import sys\nsys.exit(0)",
    "raise SystemExit(0)",
    "raise KeyboardInterrupt",
    "import atexit, os\natexit.register(print, 'passed')\nos._exit(0)",
    "print('passed'); print('ok'); print('1 passed in 0.01s')",
    'import os\nos.write(1, b\'{{"passed": [true], "detail": "", "missing": []}}\')',
    'import os\nfor d in range(3, 20):\n    try: os.write(d, b\'{{"passed": [true], "detail": "", '
    '"missing": []}}\\n\')\n    except OSError: pass',
    "import os\nfor d in range(20):\n    try: os.close(d)\n    except OSError: pass",
    "class Yes:\n    def __eq__(self, o): return True\nSECRET = Yes()",
    "class Yes(int):\n    def __eq__(self, o): return True\nSECRET = Yes()",
    "class Yes(str):\n    __hash__ = str.__hash__\n    def __eq__(s, o): return 1\nSECRET = Yes()",
    "class Yes(float):\n    def __eq__(self, o): return True\nSECRET = Yes()",
    "class Yes(list):\n    def __eq__(self, o): return True\nSECRET = Yes()",
    "class Yes(dict):\n    def __eq__(self, o): return True\nSECRET = Yes()",
    "class Meta(type):\n    def __eq__(s, o): return 1\nclass Yes(metaclass=Meta): 1\nSECRET = Yes",
    "class Yes:\n    def __getattr__(self, n): return lambda *a: True\nSECRET = Yes()",
    "import builtins\nbuiltins.AssertionError = SystemExit",
    "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.all = lambda x: True",
    "__builtins__ = {{}}",
    "import sys\nsys.modules['builtins'] = sys",
    "import sys\nsys.settrace(lambda *a: None)",
    "import sys\nsys.modules['score_jax.tasks.sandbox.runner'].judge = lambda *a: 1",
    "import sys\nr = sys.modules['score_jax.tasks.sandbox.runner']\n"
    "r.Channel.send = lambda s, m: None",
    "import score_jax.tasks.sandbox.remote as r\nr.pack = lambda v, h: True",
    "import score_jax.tasks.sandbox.remote as r\nr.pack = lambda v, h: ['h', 0]",
    "import score_jax.tasks.sandbox.remote as r\nr.pack = lambda v, h: ['zzz', 0]",
    "import score_jax.tasks.sandbox.remote as r\nr.pack = lambda v, h: ['i', {{}}]",
    "import sys, os\nos.write(4, b'[' * 100000 + b'\\n')",
    'import os\nos.write(4, b\'["", "", 42]\\nnull\\n\')',
]
LOADS = [
    "while True: pass",
    "import time\ntime.sleep(1000)",
    "while True: print('x' * 10000)",
    "import sys\nwhile True: sys.stderr.write('x' * 10000)",
    "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
    "    except (OSError, ValueError): pass\nwhile True: pass",
    "x = 'x' * (1 << 34)",
    "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "def g(n): return g(n + 1)\ng(0)",
    "import sys\nsys.setrecursionlimit(10 ** 9)\ndef g(n): return g(n + 1)\ng(0)",
    "9 ** 9 ** 9 ** 9",
    "import threading\ndef g():\n    while True: pass\n"
    "for _ in range(10000): threading.Thread(target=g).start()",
    "f = open('/tmp/x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
    "n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{{n}}', 'w')",
    "import re\nre.match('(a+)+$', 'a' * 60 + 'b')",
    "SECRET = 'x' * (1 << 26)",
    "SECRET = 10 ** 4000000",
    "x = []\nfor _ in range(10 ** 6): x = [x]\nSECRET = x",
    "def g():\n    while True: yield 1\nSECRET = g()",
    "class Slow:\n    def __len__(self):\n        while True: pass\nSECRET = Slow()",
    "import ctypes\nctypes.string_at(0)",
    "import os\nos.abort()",
]
BODY = "\nSECRET = globals().get('SECRET', 0)\ndef f(x): return SECRET\n"


def programs(**names) -> list[tuple[str, str]]:
    """Returns (kind, source) of all of them."""
    return [
        (kind, source.format(**names) + BODY)
        for kind, sources in (
            ("escape", ESCAPES),
            ("leak", LEAKS),
            ("cheat", CHEATS),
            ("load", LOADS),
        )
        for source in sources
    ]
