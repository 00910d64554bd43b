"""Access to the TPU compiler on a machine without a TPU."""

import importlib.util
import os
import re
from typing import Any

from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from score_jax.planning.chips import GIB, Topology

UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": GIB}


def topology_devices(topology: Topology) -> list[Any]:
    """The abstract devices of a topology, to compile for; of a GPU the chip that stands in.

    Raises:
      ValueError: libtpu is not installed, or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            "--mode=plan needs the TPU compiler, which is not installed: "
            "pip install 'score_jax[tpu]'"
        )
    settings = {
        # Without these libtpu queries the cloud's metadata server and waits for a timeout.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": topology.accelerator,
        # No chip is opened, so another process that holds one does no harm.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    stand_in = topology.chip.stand_in
    options: dict[str, Any] = {"num_slices": topology.slices} if topology.slices > 1 else {}
    if topology.slice_size == 1 and not stand_in:  # a host has four chips unless libtpu is told
        options["chips_per_host_bounds"] = (1, 1, 1)
    name = stand_in or topology.name.rpartition("*")[2]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"--topology is {topology.name!r}; the TPU compiler knows no such slice ({reason})"
        ) from error
    devices = list(found.devices)[: 1 if stand_in else None]
    assert len(devices) == topology.chips, f"{len(devices)} devices"
    return devices


def out_of_memory(error: BaseException) -> tuple[int, int] | None:
    """Bytes that a program needs and bytes available; None if it is another error."""
    amount = r"\(?([\d.]+)([KMG]?)\)?"
    for form in (f"Used {amount} of {amount} hbm", f"{amount} exceeds available HBM {amount}"):
        if match := re.search(form, str(error)):
            used, limit = (int(float(match[group]) * UNITS[match[group + 1]]) for group in (1, 3))
            return used, limit
    return None
