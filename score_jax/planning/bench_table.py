"""The results of --mode=bench as lines for the terminal."""

from typing import Any

GIB = 1 << 30
SHARES = ("mfu", "bandwidth")  # of the device's peaks
UNITS = {"sample": "drawn", "score": "of the rows", "update": "of the rows"}


def describe(found: dict[str, Any]) -> str:
    """The content of bench.json as a table."""
    turns = " + ".join(map(str, found["turn_limits"]))
    counts, shares = found["counts"], found["shares"]
    lines = [
        f"{found['stage']} on {found['devices']} x {found['device']}, {found['dtype']}: "
        f"{counts['rows']} rows ({found['problems']} x {found['group_size']}), prompts up to "
        f"{found['prompt_limit']} tokens, turns up to {turns}; lengths {found['lengths']}",
        f"{counts['drawn']} tokens drawn, {counts['whole']} in rows; "
        + ", ".join(f"{name} {100 * share:.1f}%" for name, share in shares.items()),
        f"phase      seconds, median of {found['repeats']:<10} tokens/s              MFU bandwidth",
    ]
    lines += [phase(name, found) for name in ordered(found["seconds"])]
    if isinstance(found["of_peak"], str):
        lines.append(f"MFU and bandwidth {found['of_peak']}")
    cached = ", from the compilation cache where it had them" if found["compilation_cache"] else ""
    compiled = ", ".join(f"{name} {s:.1f} s" for name, s in found["compile_seconds"].items())
    lines.append(f"compiled: {compiled}{cached}")
    peak = found["memory"]
    lines.append(f"peak memory per device {peak['peak_bytes'] / GIB:.2f} GiB ({peak['source']})")
    return "\n".join(lines)


def ordered(phases: dict[str, Any]) -> list[str]:
    """Phases in the order in which a step has them, the parts of sampling behind it."""
    order = ("merge", "reshard", "sample", "prefill", "decode", "score", "update")
    return [name for name in order if name in phases]


def phase(name: str, found: dict[str, Any]) -> str:
    """A phase's line."""
    seconds = found["seconds"][name]
    times = seconds["all"]
    spread = f"({min(times):.3f} to {max(times):.3f})" if times else "(sample - prefill)"
    shown = f"  {name}" if name in ("prefill", "decode") else name
    speed = found["tokens_per_second"].get(name)
    rate = f"{speed:.0f} {UNITS[name]}" if speed else ""
    peaks = {} if isinstance(found["of_peak"], str) else found["of_peak"].get(name, {})
    share = [f"{100 * peaks[part]:.1f}%" if peaks else "" for part in ("mfu", "bandwidth")]
    line = (
        f"{shown:10} {seconds['median']:7.3f} {spread:20}  {rate:18}  {share[0]:>6} {share[1]:>8}"
    )
    return line.rstrip()
