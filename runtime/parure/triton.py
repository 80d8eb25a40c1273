"""Components on a Triton server, over gRPC or HTTP."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from parure.bundle import identity_of, parse_manifest
from parure.errors import (
    BundleError,
    BundleMismatch,
    InputError,
    InvalidReply,
    ModelUnavailable,
    ServerError,
    ServerUnavailable,
)
from parure.executor import Array, Arrays, wanted_outputs
from parure.manifest import MANIFEST_NAME, Component, Manifest, TensorSpec
from parure.shared_tensors import SharedMemory, SharedTensors
from parure.solver import Solver
from parure.triton_transport import Transport, open_transport, translated

MANIFEST_MODEL = "manifest"
FILE_INPUT = "file"
FILE_OUTPUT = "content"
BUNDLE_PARAMETER = "bundle"
_WIRE_TYPES = {"float32": "FP32", "float16": "FP16"}


class TritonExecutor:
    """Runs components on the server at `url`. A context manager; safe to share between threads.

    Arrays that `run` returns are read-only: they are views of what came over the wire, or of shared memory.
    """

    def __init__(
        self,
        url: str,
        *,
        deadline: float = 60.0,
        expect_bundle: str | None = None,
        transport: Transport | None = None,
        shared_memory: SharedMemory | None = None,
    ) -> None:
        """Connect, and verify that the server serves one whole bundle.

        `deadline` bounds each call, in seconds. `expect_bundle` is the identity that the bundle must have.
        `transport` replaces the one that `url` names. `shared_memory` keeps large tensors off the wire, on a server
        of this host that allows it. Raises `InputError` for a bad URL, `ServerUnavailable`, `ModelUnavailable` with
        the components that are missing, `BundleMismatch`, `SharedMemoryRefused`.
        """
        if not 0 < deadline < math.inf:
            raise InputError(f"deadline is {deadline!r}; expected seconds above 0")
        self.url = url
        self._deadline = deadline
        self._transport = transport or open_transport(url, deadline)
        self._closed = False
        self._shared: SharedTensors | None = None
        try:
            content = self._fetch_manifest()
            self.identity = identity_of(content)
            self.manifest: Manifest = parse_manifest(content, f"the manifest of {url}")
            self._components = {component.name: component for component in self.manifest.components}
            self._check_bundle(expect_bundle)
            if shared_memory is not None:
                largest = max(t.nbytes for component in self.manifest.components for t in component.outputs)
                first = max(largest, shared_memory.least)
                self._shared = SharedTensors(self._transport, url, deadline, shared_memory, first)
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        return self._transport.name

    def run(self, component: str, inputs: Arrays, wanted: Collection[str] | None = None) -> dict[str, Array]:
        """As `Executor.run`; raises `InputError` for inputs that are not what the manifest says."""
        spec = self._components.get(component) or self.manifest.component(component)
        batch = _check_inputs(spec, inputs, self.manifest.max_batch)
        arrays = {t.name: inputs[t.name] if t.shape else inputs[t.name].reshape(-1, 1) for t in spec.inputs}
        chosen = wanted_outputs(spec, wanted)
        sizes = {t.name: batch * t.nbytes for t in chosen}
        reply = self._infer(component, arrays, sizes, chosen != spec.outputs)
        subject = f"{component} on {self.url}"
        return {t.name: decoded(reply.get(t.name), t, batch, subject) for t in chosen}

    def solver(self, name: str) -> Solver:
        """The solver `name` of the manifest; its grid comes from the server and is verified."""
        spec = next(spec for spec in self.manifest.solvers if spec.name == name)
        content = self._fetch(spec.grid)
        if hashlib.sha256(content).hexdigest() != self.manifest.files.get(spec.grid):
            raise InvalidReply(f"{self.url} sent a {spec.grid} of another bundle; write its repository again")
        with tempfile.TemporaryDirectory(prefix="parure-") as folder:
            grid = Path(folder) / spec.grid
            if not grid.resolve().is_relative_to(Path(folder).resolve()):
                raise BundleError(f"solver {name}: file name {spec.grid!r} leaves the bundle; export it again")
            grid.parent.mkdir(parents=True, exist_ok=True)
            grid.write_bytes(content)
            return Solver.load(spec, Path(folder))

    def server_version(self) -> str:
        """The version that the server tells."""
        with translated(f"the server at {self.url}", self._deadline):
            return self._transport.version()

    def close(self) -> None:
        self._closed = True
        if self._shared is not None:
            self._shared.close()
        self._transport.close()

    def __enter__(self) -> TritonExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _infer(
        self, model: str, inputs: Arrays, outputs: Mapping[str, int] | None = None, some: bool = False
    ) -> dict[str, Array]:
        """`outputs`: the bytes of each, where they are known; only then may they lie in shared memory.

        `some`: the model has more of them, which are not asked for.
        """
        if self._closed:
            raise ServerError(f"the executor for {self.url} is closed; open a new one")
        if self._shared is not None and outputs is not None:
            return self._shared.infer(model, inputs, outputs)
        with translated(f"model {model!r} at {self.url}", self._deadline):
            if outputs is not None and some:
                return self._transport.infer(model, inputs, write=dict.fromkeys(outputs))
            return self._transport.infer(model, inputs)

    def _fetch(self, name: str) -> bytes:
        """The content of a bundle's file, from the server's model `manifest`."""
        reply = self._infer(MANIFEST_MODEL, {FILE_INPUT: np.frombuffer(name.encode(), np.uint8)}).get(FILE_OUTPUT)
        if reply is None or reply.dtype != np.uint8:
            raise InvalidReply(f"model {MANIFEST_MODEL!r} at {self.url} sent no {name}; is it a server of parure?")
        return reply.tobytes()

    def _fetch_manifest(self) -> bytes:
        try:
            return self._fetch(MANIFEST_NAME)
        except ServerUnavailable as error:
            if self._transport.live():  # gRPC reports a restricted API as UNAVAILABLE, though it is permanent
                raise ServerError(
                    f"the server at {self.url} is alive but refuses inference; is it restricted to holders of a key?"
                ) from error
            raise

    def _check_bundle(self, expected: str | None) -> None:
        """Every component must be there and come from this manifest's bundle."""
        if expected is not None and self.identity != expected:
            raise BundleMismatch(
                f"{self.url} serves bundle {self.identity[:12]}..., expected {expected[:12]}...; "
                "serve the repository of that bundle, or drop the expectation"
            )
        missing = []
        for component in self.manifest.components:
            for tensor in (*component.inputs, *component.outputs):
                wire_type(tensor)
            try:
                with translated(f"model {component.name!r} at {self.url}", self._deadline):
                    served = self._transport.parameters(component.name).get(BUNDLE_PARAMETER, "none")
            except ModelUnavailable:
                missing.append(component.name)
                continue
            if served != self.identity:
                raise BundleMismatch(
                    f"{component.name} at {self.url} comes from bundle {served[:12]}..., the manifest there from "
                    f"{self.identity[:12]}...; write the repository again and restart the server"
                )
        if missing:
            raise ModelUnavailable(
                f"the server at {self.url} lacks {', '.join(missing)}; "
                "write the repository again and restart the server"
            )


def wire_type(spec: TensorSpec) -> str:
    """Triton's name of the tensor's type; raises `BundleError` for one that cannot be served."""
    if spec.dtype not in _WIRE_TYPES:
        raise BundleError(
            f"tensor {spec.name} is {spec.dtype}, which cannot be served; export it as {' or '.join(_WIRE_TYPES)}"
        )
    return _WIRE_TYPES[spec.dtype]


def _check_inputs(component: Component, inputs: Arrays, max_batch: int) -> int:
    """The batch size; raises `InputError` naming the first input that is not what the manifest says."""
    names = [spec.name for spec in component.inputs]
    if set(inputs) != set(names):
        raise InputError(f"{component.name} was given {sorted(inputs)}; expected {sorted(names)}")
    batch = len(inputs[names[0]]) if inputs[names[0]].ndim else 0
    for spec in component.inputs:
        array = inputs[spec.name]
        if array.dtype != spec.dtype or array.shape != (batch, *spec.shape) or not 1 <= batch <= max_batch:
            raise InputError(
                f"{component.name}: input {spec.name} is {array.dtype} {list(array.shape)}; "
                f"expected {spec.dtype} {['B', *spec.shape]} with one B from 1 to {max_batch} for all inputs"
            )
    return batch


def wire_shape(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """A per-sample scalar travels as [B, 1]: Triton has no tensors without dimensions."""
    return (batch, *(spec.shape or (1,)))


def decoded(array: Array | None, spec: TensorSpec, batch: int, subject: str) -> Array:
    """[B, ...] as the manifest says; raises `InvalidReply` unless it is, and finite."""
    if array is None:
        raise InvalidReply(f"{subject}: output {spec.name} is missing; the server runs another model; restart it")
    shape = wire_shape(spec, batch)
    if array.dtype != spec.dtype or array.shape != shape:
        raise InvalidReply(
            f"{subject}: output {spec.name} is {array.dtype} {list(array.shape)}; "
            f"expected {spec.dtype} {list(shape)}; the server runs another model"
        )
    if not _finite(np.asarray(array)):
        raise InvalidReply(
            f"{subject}: output {spec.name} holds numbers that are not finite; check the inputs, and that the server has numpy<2"
        )
    return array.reshape(batch, *spec.shape)


def _finite(array: Array) -> bool:
    if array.dtype == np.float16:  # five times as fast as isfinite: an exponent of ones means infinite or NaN
        return not bool(((array.view(np.uint16) & 0x7C00) == 0x7C00).any())
    return bool(np.isfinite(array).all())
