"""Isolates the calling process: namespaces, a private file system, limits, no privileges.

Functions return descriptions of the protections that they could not set up, instead of
raising where the kernel refuses. Imports are few, as every tested program waits for them.
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
KEPT_MOUNT_FLAGS = (
    8 | 1024 | 2048 | (1 << 21)
)  # noexec noatime nodiratime relatime: can't be cleared
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
NOBODY = 65534  # user id


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
    """Enters new user, network, mount, IPC and UTS namespaces; children get new pids."""
    if sys.platform != "linux":
        return ["namespaces (Linux only)"]
    flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    user, group = os.getuid(), os.getgid()
    try:
        if user == 0:  # root needs no user namespace; it changes to another user later
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
    """Lists the folders that a running Python needs: its library and shared libraries."""
    paths = [os.path.dirname(os.__file__), "/usr/lib", "/usr/lib64", "/lib", "/lib64"]
    return [path for path in paths if os.path.isdir(path)]


def _show(path: str, root: str) -> None:
    """Bind-mounts a file or folder of the host, read-only, under a new root."""
    target = root + path
    if os.path.islink(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if not os.path.lexists(target):
            os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        if os.path.exists(target):
            return  # inside a folder that is mounted already
        os.makedirs(target)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    kept = os.statvfs(path).f_flag & KEPT_MOUNT_FLAGS
    _mount(path, target, "", MS_BIND)
    device = 0 if path.startswith("/dev/") else MS_NODEV
    _mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | device | kept)


def change_root(private_bytes: int) -> list[str]:
    """Changes to a root with only Python's library and the system's, and a writable `/tmp`.

    Args:
      private_bytes: size of `/tmp`, which is in memory and is freed with the process.
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
    """Drops root and all capabilities.

    Args:
      user: an unused id that root changes to, so that per-user limits are not shared.
    """
    if os.getuid() == 0:
        for candidate in (user, NOBODY):
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
    """Sets hard resource limits of this process."""
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
    """Makes the kernel kill this process when its parent ends, and makes it non-dumpable."""
    if sys.platform == "linux":
        _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _libc().prctl(PR_SET_DUMPABLE, 0)


def filter_calls(*, files: bool) -> list[str]:
    """Installs the system-call filter."""
    if sys.platform != "linux" or not seccomp.install(files=files):
        return ["a system-call filter"]
    return []
