"""Checks a bundle from the outside in: manifest and hashes, graphs, plans, and parity on the tensors it carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from parure.bundle import Bundle
from parure.engine import plans, verify_plan
from parure.errors import BundleError, ParureError
from parure.executor import Executor
from parure.finding import Finding
from parure.manifest import Component, Precision
from parure.onnx_executor import OnnxExecutor
from parure_export.evidence import EVIDENCE, Evidence, load_evidence
from parure_export.parity import TOLERANCES, relative_error


def verify(root: Path) -> Iterator[Finding]:
    """Every check of the bundle at `root`, as it is made. Stops where nothing further could be trusted."""
    try:
        bundle = Bundle.open(root)
    except BundleError as error:
        yield Finding("manifest and hashes", False, str(error))
        return
    yield Finding("manifest and hashes", True, f"{len(bundle.manifest.files)} files")
    yield from _graphs(bundle)
    yield from _plans(bundle)
    yield from _parity(bundle)


def _graphs(bundle: Bundle) -> Iterator[Finding]:
    for component in bundle.manifest.components:
        path = bundle.graph(component.name)
        try:
            onnx.checker.check_model(str(path), full_check=not path.with_name(f"{path.name}.data").exists())
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            yield Finding(f"graph {component.name}", False, str(error).strip().splitlines()[0])
        else:
            yield Finding(f"graph {component.name}", True, "valid ONNX")


def _plans(bundle: Bundle) -> Iterator[Finding]:
    for plan in plans(bundle.root):
        subject = f"plan {plan.parent.name}/{plan.name}"
        try:
            record = verify_plan(plan, bundle)
        except BundleError as error:
            yield Finding(subject, False, str(error))
        else:
            yield Finding(subject, True, f"{record.plan_bytes / 1e6:.1f} MB, {record.flavor} {record.flavor_version}")


def _parity(bundle: Bundle) -> Iterator[Finding]:
    manifest = bundle.manifest
    if EVIDENCE not in manifest.files:
        yield Finding("parity", None, f"the bundle carries no {EVIDENCE}")
        return
    if manifest.precision is Precision.BF16:
        yield Finding("parity", None, "ONNX Runtime has no bf16 kernels; export measured it by rounding")
        return
    tolerance = TOLERANCES[manifest.precision].component
    for name, evidence in load_evidence(bundle.root / EVIDENCE).items():
        executor = OnnxExecutor(bundle, literal=True)  # one graph in memory at a time
        try:
            error = evidence_error(executor, manifest.component(name), evidence)
        except ParureError as problem:
            yield Finding(f"parity {name}", False, str(problem))
            continue
        finally:
            executor.close()
        yield Finding(f"parity {name}", error <= tolerance, f"{error:.1e} from PyTorch, tolerance {tolerance:.0e}")


def evidence_error(executor: Executor, component: Component, evidence: Evidence) -> float:
    """How far the component's outputs for the inputs of `evidence` are from its outputs (relative), at most."""
    inputs = {t.name: evidence.inputs[t.name].astype(t.dtype) for t in component.inputs}
    outputs = executor.run(component.name, inputs)
    return max(relative_error(outputs[name].astype(np.float32), value) for name, value in evidence.outputs.items())
