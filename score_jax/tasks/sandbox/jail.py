"""Shuts the calling process in: namespaces, a private file system, limits, no privileges.

Each function returns what it could not do, in words; nothing here raises for a
kernel that says no. Imports stay few: every tested program pays for them.
"""

import ctypes
import os
import resource
import signal
import sys

from score_jax.tasks.sandbox import seccomp

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MS_REC, MS_PRIVATE, MNT_DETACH = 16384, 1 << 18, 2
KEPT_MOUNT_FLAGS = 8 | 1024 | 2048 | (1 << 21)  # noexec noatime nodiratime relatime: locked
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
STRANGER = 65534  # the user "nobody"


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    done = _libc().mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if done:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {target}: {os.strerror(error)}")


def _unshare(flags: int) -> None:
    if _libc().unshare(flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def enter_namespaces() -> list[str]:
    """Gives this process its own users, network, mounts and names, its children their own pids."""
    if sys.platform != "linux":
        return ["namespaces (Linux only)"]
    flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    user, group = os.getuid(), os.getgid()
    try:
        if user == 0:  # no new user namespace: root drops to a user without rights later
            _unshare(flags)
        else:
            _unshare(flags | CLONE_NEWUSER)
            for name, text in (
                ("setgroups", "deny"),
                ("uid_map", f"{user} {user} 1"),
                ("gid_map", f"{group} {group} 1"),
            ):
                with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
    except OSError as error:
        return [f"namespaces ({error.strerror})"]
    return []


def _readable() -> list[str]:
    """Lists what a running Python still opens: its library and the system's."""
    paths = [os.path.dirname(os.__file__), "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    return [path for path in paths if os.path.isdir(path)]


def _show(path: str, root: str) -> None:
    """Makes a file or folder of the host appear, read-only, under a new root."""
    target = root + path
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        if os.path.exists(target):
            return  # inside a folder that is shown already
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    kept = os.statvfs(path).f_flag & KEPT_MOUNT_FLAGS
    _mount(path, target, "", MS_BIND)
    device = 0 if path.startswith("/dev/") else MS_NODEV
    _mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | device | kept)


def change_root(private_bytes: int) -> list[str]:
    """Leaves the host's files behind, but for Python's library; `/tmp` alone can be written.

    Args:
      private_bytes: size of that folder, which is memory and vanishes with the process.
    """
    try:
        _mount("none", "/", "", MS_REC | MS_PRIVATE)
        shown = sorted([*_readable(), *DEVICES], key=len)
        root = next(
            folder
            for folder in ("/mnt", "/media", "/srv", "/opt", "/tmp")
            if os.path.isdir(folder) and not any(path.startswith(folder) for path in shown)
        )
        _mount("tmpfs", root, "tmpfs", MS_NOSUID, "size=64k,mode=755")
        for path in shown:
            _show(path, root)
        os.mkdir(f"{root}/tmp")
        _mount(
            "tmpfs",
            f"{root}/tmp",
            "tmpfs",
            MS_NOSUID | MS_NODEV,
            f"size={private_bytes},nr_inodes=1000,mode=1777",
        )
        os.chdir(root)
        if _libc().syscall(PIVOT_ROOT[os.uname().machine], b".", b"."):
            raise OSError(ctypes.get_errno(), "pivot_root")
        if _libc().umount2(b".", MNT_DETACH):
            raise OSError(ctypes.get_errno(), "umount2")
        _mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
        os.chdir("/tmp")
    except (OSError, StopIteration, KeyError) as error:
        return [f"a private file system ({error})"]
    return []


def drop_privileges(user: int) -> list[str]:
    """Gives up root and every capability.

    Args:
      user: id that root becomes, one that nobody has, so that no limit is shared.
    """
    if os.getuid() == 0:
        for candidate in (user, STRANGER):
            try:
                os.setgroups([])
                os.setresgid(candidate, candidate, candidate)
                os.setresuid(candidate, candidate, candidate)
                return []
            except OSError:
                continue
        return ["another user"]
    if sys.platform == "linux":
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        _libc().capset(header, (ctypes.c_uint32 * 6)())
    return []


def limit(*, cpu_seconds: int, memory_bytes: int, file_bytes: int, threads: int) -> None:
    """Sets the limits of this process; none can be raised again."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, threads),
        (resource.RLIMIT_AS, memory_bytes),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, and hides its memory from others."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _libc().prctl(PR_SET_DUMPABLE, 0)


def filter_calls(*, files: bool) -> list[str]:
    """Installs the system-call filter."""
    if sys.platform != "linux" or not seccomp.install(files=files):
        return ["a system-call filter"]
    return []
