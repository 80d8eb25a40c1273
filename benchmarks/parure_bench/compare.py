"""Two records, series by series: only what is both significant and large is called a change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parure.errors import RecordError
from parure_bench.record import Record, Series
from parure_bench.statistics import Estimate, ratio

LEAST_SAMPLES = 3
Verdict = Literal["slower", "faster", "same", "too few samples"]
# Units of rates and of fidelity; times, bytes and the like are better when lower.
HIGHER_IS_BETTER = ("/s", "dB", "similarity")
NOT_JUDGED = ("share",)  # parts of a whole grow where another part shrinks


@dataclass(frozen=True)
class Change:
    """One series in both records: new / old of the medians, and what it means beyond `bound`."""

    series: Series
    ratio: Estimate | None
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """`missing` are series of the old record that the new one lacks, `added` the other way round."""

    changes: tuple[Change, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def slower(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.verdict == "slower")


def compare(old: Record, new: Record, bound: float) -> Comparison:
    """Judge every series that both have; `bound` 0.05 lets 5 % pass.

    Slower: the interval of the ratio excludes 1, and the ratio is beyond the bound. Raises `RecordError` for records of
    different kinds or devices, and for records with no series in common.
    """
    if old.kind != new.kind:
        raise RecordError(f"the old record is of kind {old.kind}, the new one of {new.kind}; compare two of one kind")
    if old.environment.device != new.environment.device:
        raise RecordError(
            f"the old record was measured on {old.environment.device}, the new one on {new.environment.device}; "
            "times of different devices say nothing of the code; measure both on one"
        )
    before = {series.key: series for series in old.series if _judged(series)}
    after = {series.key: series for series in new.series if _judged(series)}
    both = [key for key in after if key in before]
    if not both:
        raise RecordError("the records have no series in common; measure both with the same options")
    return Comparison(
        changes=tuple(_change(before[key], after[key], bound) for key in both),
        missing=tuple(before[key].title for key in before if key not in after),
        added=tuple(after[key].title for key in after if key not in before),
        warnings=tuple(_warnings(old, new)),
    )


def _judged(series: Series) -> bool:
    return bool(series.samples) and series.unit not in NOT_JUDGED


def _change(old: Series, new: Series, bound: float) -> Change:
    if old.unit != new.unit:
        raise RecordError(
            f"{new.title} is in {old.unit} in the old record, in {new.unit} in the new one; measure again"
        )
    if min(len(old.samples), len(new.samples)) < LEAST_SAMPLES or min(*old.samples, *new.samples) <= 0:
        return Change(new, None, "too few samples")
    found = ratio(new.samples, old.samples)
    return Change(new, found, _verdict(found, bound, new.unit))


def _verdict(found: Estimate, bound: float, unit: str) -> Verdict:
    worse = 1 / found.value if unit.endswith(HIGHER_IS_BETTER) else found.value
    if not found.excludes(1) or abs(worse - 1) <= bound:
        return "same"
    return "slower" if worse > 1 else "faster"


def _warnings(old: Record, new: Record) -> Iterator[str]:
    for name, record in (("old", old), ("new", new)):
        if record.incomplete:
            yield f"the {name} record is incomplete: {record.incomplete}"
        for gpu in (*record.environment.gpus, *record.gpus_after):
            if gpu.throttled:
                yield f"{gpu.name} was throttled in the {name} record: {', '.join(gpu.throttled)}"
    if old.environment.bundle != new.environment.bundle:
        yield "the records are of different bundles"
    libraries = old.environment.libraries.keys() | new.environment.libraries.keys()
    for library in sorted(libraries):
        versions = [record.environment.libraries.get(library, "none") for record in (old, new)]
        if versions[0] != versions[1]:
            yield f"{library} was {versions[0]} in the old record, {versions[1]} in the new one"
