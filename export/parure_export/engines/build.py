"""`build_engines`: a bundle's graphs -> plans beside them, from the cache where they were built before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parure.bundle import Bundle, sha256_of
from parure.engine import PLAN_SUFFIX, BatchRange, EngineRecord, engine_folder, graph_hash
from parure.errors import ExportError, InputError
from parure.host import TENSORRT_PACKAGES, installed
from parure.manifest import Component, Precision
from parure_export.engines.cache import EngineCache
from parure_export.engines.request import BuildRequest, Options, Profile
from parure_export.engines.structure import structure_hash
from parure_export.engines.targets import Flavor, Target, local_capability
from parure_export.engines.worker import Job

Watch = Callable[[str, str, int, int], None]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """One engine: where it is, what it is, and whether it was there already."""

    plan: Path
    record: EngineRecord
    from_cache: bool


def build_engines(
    bundle: Bundle,
    target: Target,
    flavor: Flavor,
    profiles: Sequence[Profile],
    *,
    options: Options,
    cache: EngineCache,
    components: Sequence[str] = (),
    watch: Watch = lambda engine, phase, step, steps: None,
    tell: Tell = lambda message: None,
) -> Iterator[Built]:
    """Build an engine per component and profile into the bundle; `components` empty means all.

    A refittable engine that was built before with other weights gets these weights, and is not built again. Raises
    `InputError` for what cannot be asked for, `ExportError` where TensorRT fails. `watch` is told engine, phase,
    step and steps, `tell` what else is worth a line. Engines that were finished before a failure stay.
    """
    installed_now = installed_version(flavor)
    _check_options(flavor, options)
    cache.prepare()
    for component in _chosen(bundle, components):
        for profile in profiles:
            _check_profile(bundle, profile)
            request = BuildRequest(
                component=component.name,
                graph_sha256=graph_hash(bundle, component.name),
                structure_sha256=structure_hash(bundle.graph(component.name)),
                flavor=flavor,
                flavor_version=installed_now,
                capability=target.capability,
                profile=profile,
                options=options,
            )
            with cache.locked(request.key):
                found = cache.find(request.key)
                plan, record = found or _build(bundle, component, target, request, cache, watch, tell)
            yield Built(_place(bundle, plan, record, target), record, found is not None)


def installed_version(flavor: Flavor) -> str:
    """The version of TensorRT that is installed; raises `InputError` with the line that installs it."""
    package = TENSORRT_PACKAGES[flavor]
    found = installed(package)
    if found is None:
        raise InputError(
            f"flavor {flavor} needs {package}, which is not installed; run `pip install 'parure[{flavor}]'`"
        )
    return found


def _check_options(flavor: Flavor, options: Options) -> None:
    """TensorRT-RTX asks the driver when it makes a plan refittable: that alone cannot be done ahead of time."""
    if flavor is Flavor.TENSORRT_RTX and (options.refittable or options.strip) and local_capability() is None:
        raise InputError(
            "TensorRT-RTX makes refittable and stripped plans only on a machine with a GPU, and this one has none; "
            "build there, or build without: new weights then mean a new build, which takes seconds and is cached"
        )


def _is_here(target: Target) -> bool:
    here = local_capability()
    return here is not None and target.capability in (None, here)


def _chosen(bundle: Bundle, names: Sequence[str]) -> list[Component]:
    known = [component.name for component in bundle.manifest.components]
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"component {unknown[0]!r} is not in the bundle; expected one of {', '.join(known)}")
    return [component for component in bundle.manifest.components if not names or component.name in names]


def _check_profile(bundle: Bundle, profile: Profile) -> None:
    if profile.max > bundle.manifest.max_batch:
        raise InputError(
            f"batch {profile.max} is more than the bundle's {bundle.manifest.max_batch}; export it with "
            f"--max-batch {profile.max}"
        )


def _build(
    bundle: Bundle, component: Component, target: Target, request: BuildRequest, cache: EngineCache, watch: Watch,
    tell: Tell,
) -> tuple[Path, EngineRecord]:  # fmt: skip
    relative = cache.relative(request.family, request.key) if request.options.refittable else None
    with cache.staging() as folder:
        plan = folder / f"engine{PLAN_SUFFIX}"
        timing = cache.root / f"timing-{request.flavor}-{request.flavor_version}-{target.sm}.cache"
        job = Job(
            request=request,
            graph=bundle.graph(component.name).absolute(),
            plan=plan,
            shapes={tensor.name: tensor.shape for tensor in component.inputs},
            timing_cache=timing if request.flavor is Flavor.TENSORRT else None,
            relative=relative[0] if relative else None,
            inspect=_is_here(target) and not request.options.strip,
        )
        engine = f"{component.name} {request.profile}"
        done = run_worker(job, engine, watch, tell)
        record = EngineRecord(
            component=component.name,
            target=target.name,
            compute_capability=target.capability,
            flavor=request.flavor.value,
            flavor_version=request.flavor_version,
            precision=bundle.manifest.precision,
            batches=BatchRange(**request.profile.model_dump()),
            inputs=component.inputs,
            outputs=component.outputs,
            refittable=request.options.refittable or request.options.strip,
            stripped=request.options.strip,
            weight_streaming=request.options.weight_streaming,
            graph_sha256=request.graph_sha256,
            family=request.family,
            plan_sha256=sha256_of(plan),
            plan_bytes=plan.stat().st_size,
            key=request.key,
            **done,
        )
        _check_types(record)
        return cache.keep(plan, record), record


def run_worker(
    job: Job,
    engine: str,
    watch: Watch = lambda engine, phase, step, steps: None,
    tell: Tell = lambda message: None,
) -> dict[str, Any]:
    """Run the worker; its last word is the result. Leaving this function early ends it."""
    command = [sys.executable, "-m", "parure_export.engines.worker"]
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as complaints,
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=complaints, text=True, start_new_session=True
        ) as worker,
    ):
        assert worker.stdin and worker.stdout
        peak = 0.0
        try:
            worker.stdin.write(job.model_dump_json())
            worker.stdin.close()
            for line in worker.stdout:
                peak = _peak_gb(worker.pid) or peak
                message = json.loads(line)
                event = message.pop("event")
                if event == "progress":
                    watch(engine, message["phase"], message["step"], message["steps"])
                elif event == "note":
                    tell(f"{engine}: {message['message']}")
                elif event == "done":
                    worker.wait()
                    return dict(message)
                else:
                    raise _failure(engine, message)
            code = worker.wait()
            complaints.seek(0)
            said = complaints.read().strip().splitlines()
        finally:
            worker.kill()
    if code == -9:
        raise ExportError(
            f"building {engine} was killed, most likely because memory ran out: it had reached {peak:.1f} GB; "
            "build on a machine with more memory"
        )
    raise ExportError(f"building {engine} ended with code {code}: {said[-1] if said else 'it said nothing'}")


def _peak_gb(pid: int) -> float:
    """The peak of a process's resident memory so far, as the kernel tells; 0 where it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(lines["VmHWM"].split()[0]) * 1024 / 1e9 if "VmHWM" in lines else 0.0


def _failure(engine: str, message: dict[str, Any]) -> ExportError:
    needed = f"it had reached {message['peak_bytes'] / 1e9:.1f} GB"
    text = {
        "memory": f"building {engine} ran out of memory; {needed}; build with more memory",
        "disk": f"building {engine} could not write its files: {message['message']}; free space or use another --cache",
        "builder": f"TensorRT cannot build {engine}: {message['message']}",
    }[message["kind"]]
    return ExportError(text)


def _check_types(record: EngineRecord) -> None:
    """An engine of 16 bits that came out in fp32 is an error: it would be half as fast and say nothing."""
    if record.precision is Precision.FP32:
        return
    counted: dict[str, int] = {}
    for types in record.types.values():
        for name, count in types.items():
            counted[name] = counted.get(name, 0) + count
    if counted and counted.get("FLOAT", 0) == sum(counted.values()):
        raise ExportError(
            f"{record.component} was asked for in {record.precision.value} and all of its heavy layers came out in "
            "fp32; export the bundle again, and see reports/precision.json"
        )


def _place(bundle: Bundle, plan: Path, record: EngineRecord, target: Target) -> Path:
    """Copy plan and record into the bundle, the record last: without it a plan is not opened."""
    folder = engine_folder(bundle.root, target.name, record.flavor)
    batches = Profile(**record.batches.model_dump())
    placed = folder / f"{record.component}-b{batches}{PLAN_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        placed.with_suffix(".json").unlink(missing_ok=True)
        shutil.copyfile(plan, placed)
        own = record.model_copy(update={"target": target.name})
        placed.with_suffix(".json").write_text(own.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise ExportError(
            f"cannot write {placed}: {error.strerror}; free space, or make the bundle writable"
        ) from error
    return placed
