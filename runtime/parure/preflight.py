"""Will this bundle run there? Asked before anything is deployed: of this machine, or of a running server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from parure.bundle import Bundle
from parure.doctor.software import onnx_runtime
from parure.engine import EngineRecord, plans, verify_plan
from parure.errors import BundleError, ParureError
from parure.finding import Finding
from parure.health import probe
from parure.host import TENSORRT_PACKAGES, Gpu, gpus, installed
from parure.manifest import Precision
from parure.triton import MANIFEST_MODEL, TritonExecutor

PORTABLE_FROM = (8, 0)


def examine_host(bundle: Bundle) -> Iterator[Finding]:
    """This machine: its GPUs, its runtimes, and every engine of the bundle."""
    here = gpus()
    if here:
        for gpu in here:
            sm = f"sm{gpu.capability[0]}{gpu.capability[1]}"
            yield Finding("GPU", True, f"{gpu.name}, {sm}, driver {gpu.driver}, {gpu.memory / 2**30:.0f} GiB")
    else:
        yield Finding("GPU", None, "none; components run on ONNX Runtime's CPU kernels")
    yield _onnx_runtime(bundle, here)
    for plan in plans(bundle.root):
        yield _engine(plan, bundle, here)


def examine_server(bundle: Bundle, url: str, deadline: float) -> Iterator[Finding]:
    """The server at `url`: does it answer, and is what it serves this very bundle, whole?"""
    try:
        with TritonExecutor(url, deadline=deadline, expect_bundle=bundle.identity) as executor:
            components = ", ".join(component.name for component in executor.manifest.components)
            yield Finding("server", True, f"Triton {executor.server_version()} over {executor.name}")
            yield Finding("models", True, f"{components}: all there, all of bundle {bundle.identity[:12]}...")
    except ParureError as error:
        yield Finding("server", False, str(error))
        return
    yield from (finding for finding in probe(url, deadline) if finding.subject not in ("server", MANIFEST_MODEL))


def _onnx_runtime(bundle: Bundle, here: Sequence[Gpu]) -> Finding:
    finding = onnx_runtime(here)
    if bundle.manifest.precision is Precision.BF16 and finding.passed is not False:
        return Finding(
            finding.subject, None, f"{finding.found}; it has no kernels for this bundle's bf16: build engines"
        )
    return finding


def _engine(plan: Path, bundle: Bundle, here: Sequence[Gpu]) -> Finding:
    subject = f"{plan.parent.name}/{plan.name}"
    try:
        record = verify_plan(plan, bundle)
    except BundleError as error:
        return Finding(subject, False, str(error))
    if not here:
        return Finding(subject, False, "this machine has no GPU")
    if problem := misfit(record, here[0]):
        return Finding(subject, False, problem)
    return Finding(subject, True, f"{record.flavor} {record.flavor_version}, {record.plan_bytes / 2**20:.0f} MiB")


def misfit(record: EngineRecord, gpu: Gpu) -> str:
    """Why the engine cannot run on `gpu`; empty where nothing speaks against it."""
    package = TENSORRT_PACKAGES[record.flavor]
    version = installed(package)
    if version is None:
        return f"needs {package} {record.flavor_version}, which is not installed"
    if version != record.flavor_version:
        return f"was built with {package} {record.flavor_version}, {version} is installed; build it again"
    capability = record.compute_capability
    if capability is None and gpu.capability < PORTABLE_FROM:
        return f"is portable from Ampere on, {gpu.name} is older; build it for this GPU"
    if capability is not None and capability != gpu.capability:
        wanted, there = (f"sm{major}{minor}" for major, minor in (capability, gpu.capability))
        return f"was built for {wanted}, {gpu.name} is {there}; build it with --target local"
    if record.plan_bytes > gpu.memory:
        return f"has {record.plan_bytes / 2**30:.1f} GiB, {gpu.name} has {gpu.memory / 2**30:.1f} GiB of memory"
    return ""
