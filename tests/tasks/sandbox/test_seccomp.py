import struct

import pytest

from score_jax.tasks.sandbox import seccomp


def decide(program: bytes, number: int, arguments=(), audit=0xC000003E) -> int:
    """A plain interpreter of the filter."""
    data = struct.pack("<IIQ", number, audit, 0) + struct.pack(
        "<6Q", *arguments, *[0] * (6 - len(arguments))
    )
    steps = [struct.unpack_from("<HBBI", program, n) for n in range(0, len(program), 8)]
    place, register = 0, 0
    while True:
        code, if_true, if_false, value = steps[place]
        place += 1
        if code == seccomp.LOAD:
            register = struct.unpack_from("<I", data, value)[0]
        elif code == seccomp.RETURN:
            return value
        else:
            holds = {
                seccomp.EQUAL: register == value,
                seccomp.AT_LEAST: register >= value,
                seccomp.ANY_BIT: bool(register & value),
            }[code]
            place += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "audit", "fork_like", "clone", "openat"),
    [("x86_64", 0xC000003E, 57, 56, 257), ("aarch64", 0xC00000B7, 221, 220, 56)],
)
def test_the_filter_decides_as_it_says(machine, audit, fork_like, clone, openat):
    strict = seccomp.build(machine, files=False)
    lax = seccomp.build(machine, files=True)
    assert strict is not None and lax is not None
    refused = seccomp.DENY | seccomp.EPERM
    for program in (strict, lax):
        assert decide(program, fork_like, audit=audit) == refused
        assert decide(program, clone, [0x11], audit=audit) == refused
        assert decide(program, clone, [seccomp.CLONE_THREAD | 0x11], audit=audit) == seccomp.ALLOW
        assert decide(program, openat, [0, 0, 0], audit=audit) == seccomp.ALLOW
        assert decide(program, 435, audit=audit) == seccomp.DENY | seccomp.ENOSYS
        assert decide(program, 1, audit=0x40000003) == seccomp.KILL  # another architecture
        assert decide(program, 0x40000000 + 57, audit=audit) == refused  # the x32 ABI
    assert decide(strict, openat, [0, 0, 0o102], audit=audit) == refused
    assert decide(lax, openat, [0, 0, 0o102], audit=audit) == seccomp.ALLOW


def test_an_unknown_architecture_has_no_filter():
    assert seccomp.build("riscv64", files=True) is None
