"""fp32 graph -> mixed precision, decided from evidence: ranges are recorded, a policy chooses, a pass converts."""

from parure_export.precision.convert import convert
from parure_export.precision.emulate import emulate
from parure_export.precision.policy import HALF_PRECISION, Kept, choose
from parure_export.precision.ranges import Ranges, record_ranges

__all__ = ["HALF_PRECISION", "Kept", "Ranges", "choose", "convert", "emulate", "record_ranges"]
