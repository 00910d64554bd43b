"""A kernel filter (seccomp-BPF) that refuses system calls that tested programs don't need.

It needs no privileges, works inside containers and cannot be removed. It has a list of
refused calls: new processes, other programs, signals to others, sockets, tracing, mounting,
further namespaces; and, without a private file system, every call that changes files. On
an unknown architecture there is no filter, and `install` returns False.
"""

import ctypes
import os
import struct

EPERM, ENOSYS = 1, 38
ALLOW, DENY, KILL = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD = 0x10000
WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000  # O_WRONLY O_RDWR O_CREAT O_TRUNC O_APPEND
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split())


_SHARED = {  # numbers that all newer architectures have in common
    "io_uring": (425, 426, 427),
    "pidfd": (424, 434, 438),
    "mount_api": (428, 429, 430, 431, 432, 433, 442),
    "clone3": (435,),
    "openat2": (437,),
    "fchmodat2": (452,),
}
_CALLS = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "open": {2: 1, 257: 2},  # call: which argument holds the flags
        # fork vfork execve execveat; kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo;
        # ptrace process_vm_readv/writev; socket; setsid setpgid prctl personality;
        # mount umount2 pivot_root chroot unshare setns; bpf perf_event_open; keyctl add_key
        # request_key; userfaultfd memfd_create; shmget shmat shmctl msgget semget mq_open;
        # fanotify_init; name_to_handle_at open_by_handle_at
        "never": _numbers(
            "57 58 59 322 62 200 234 129 297 101 310 311 41 112 109 157 135 165 166 155 "
            "161 272 308 321 298 250 248 249 323 319 29 30 31 68 64 240 300 303 304"
        ),
        # creat mkdir(at) rmdir unlink(at) rename(at)(2) link(at) symlink(at) truncate
        # chmod fchmod(at) chown fchown lchown fchownat mknod(at) utime utimes futimesat
        # utimensat, setxattr and removexattr
        "files": _numbers(
            "85 83 258 84 87 263 82 264 316 86 265 88 266 76 90 91 268 92 93 94 260 133 "
            "259 132 235 261 280 188 189 190 197 198 199"
        ),
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "open": {56: 2},
        "never": _numbers(
            "221 281 129 130 131 138 240 117 270 271 198 157 154 167 92 40 39 41 51 97 268 "
            "280 241 219 217 218 282 279 194 196 195 186 190 180 262 264 265"
        ),
        "files": _numbers("34 35 38 276 37 36 45 53 52 54 55 33 88 5 6 7 14 15 16"),
    },
}


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _refuse(number: int, error: int) -> bytes:
    return _step(EQUAL, number, 0, 1) + _step(RETURN, DENY | error)


def _check_argument(number: int, argument: int, bits: int, *, refuse_if_set: bool) -> bytes:
    """Allows or refuses a call by whether any of the bits is set in an argument."""
    verdicts = (DENY | EPERM, ALLOW) if refuse_if_set else (ALLOW, DENY | EPERM)
    return (
        _step(EQUAL, number, 0, 4)
        + _step(LOAD, ARGUMENTS + 8 * argument)
        + _step(ANY_BIT, bits, 0, 1)
        + _step(RETURN, verdicts[0])
        + _step(RETURN, verdicts[1])
    )


def build(machine: str, *, files: bool) -> bytes | None:
    """Returns the filter program, or None for an architecture without a table.

    Args:
      machine: value of `os.uname().machine`.
      files: whether calls that change files are allowed.
    """
    calls = _CALLS.get(machine)
    if calls is None:
        return None
    refused = calls["never"] + _SHARED["io_uring"] + _SHARED["pidfd"] + _SHARED["mount_api"]
    unknown = _SHARED["clone3"] + (() if files else _SHARED["openat2"])
    program = _step(LOAD, ARCHITECTURE) + _step(EQUAL, calls["audit"], 1, 0) + _step(RETURN, KILL)
    program += _step(LOAD, NUMBER)
    program += _step(AT_LEAST, 0x40000000, 0, 1) + _step(RETURN, DENY | EPERM)  # the x32 ABI
    if not files:
        refused += calls["files"] + _SHARED["fchmodat2"]
    for number in refused:
        program += _refuse(number, EPERM)
    for number in unknown:
        program += _refuse(number, ENOSYS)  # ENOSYS makes the C library use the older call
    program += _check_argument(calls["clone"], 0, CLONE_THREAD, refuse_if_set=False)
    if not files:
        for number, argument in calls["open"].items():
            program += _check_argument(number, argument, WRITING, refuse_if_set=True)
    return program + _step(RETURN, ALLOW)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def install(*, files: bool) -> bool:
    """Installs the filter in this process, irrevocably; returns whether that succeeded."""
    steps = build(os.uname().machine, files=files)
    if steps is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        return False
    program = _FilterProgram(len(steps) // 8, steps)
    return libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0
