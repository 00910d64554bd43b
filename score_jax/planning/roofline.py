"""Roofline model: the lower bound of a phase's time from compute, HBM, ICI and DCN.

All of them are assumed to overlap perfectly and to run at their peak, so the times are
lower bounds, not predictions.
"""

from dataclasses import dataclass

from score_jax.planning.chips import Chip
from score_jax.planning.hlo import Collective


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One chip's work in a phase, and the least time of each part of it."""

    name: str
    flops: float
    hbm_bytes: float
    ici_bytes: float
    dcn_bytes: float
    compute_seconds: float
    hbm_seconds: float
    ici_seconds: float
    dcn_seconds: float

    @property
    def seconds(self) -> float:
        """The lower bound of the phase's time."""
        return max(self.compute_seconds, self.hbm_seconds, self.ici_seconds, self.dcn_seconds)

    @property
    def bound(self) -> str:
        """The resource that takes longest: compute, HBM, ICI or DCN."""
        times = {
            "compute": self.compute_seconds,
            "HBM": self.hbm_seconds,
            "ICI": self.ici_seconds,
            "DCN": self.dcn_seconds,
        }
        return max(times, key=lambda name: times[name])


def phase(name: str, chip: Chip, flops: float, hbm_bytes: float, sent: list[Collective]) -> Phase:
    """Computes a phase's times from its work and the chip's peak rates.

    Args:
      flops: per chip.
      hbm_bytes: per chip.
      sent: the collectives of the phase.
    """
    ici = sum(c.wire_bytes for c in sent if not c.across)
    dcn = sum(c.wire_bytes for c in sent if c.across)
    return Phase(
        name=name,
        flops=flops,
        hbm_bytes=hbm_bytes,
        ici_bytes=ici,
        dcn_bytes=dcn,
        compute_seconds=flops / chip.flops,
        hbm_seconds=hbm_bytes / chip.hbm_bandwidth,
        ici_seconds=ici / chip.ici_bandwidth,
        dcn_seconds=dcn / chip.dcn_bandwidth,
    )
