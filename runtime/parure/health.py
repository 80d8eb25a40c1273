"""Does a server really answer? Its own health and readiness stay true when the process behind a model has died."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parure.errors import CallRefused, InputError, ModelUnavailable, ParureError, ServerError, ServerUnavailable
from parure.executor import Array, Arrays
from parure.finding import Finding
from parure.manifest import Component
from parure.server_calls import PictureCalls, open_calls
from parure.triton import MANIFEST_MODEL, TritonExecutor
from parure.triton_transport import translated
from parure.tryon_wire import TRYON_MODEL, UNARY_MODEL

_REMEDY = "restart the server: Triton does not replace a process of a model that has died"
_NO_PICTURE: Arrays = {
    "photo": np.zeros(1, np.uint8),
    "ornament": np.zeros(1, np.uint8),
    "box": np.zeros(4, np.float64),
    "deadline": np.array([-1.0]),  # refused before it waits for a place: a server that is full answers too
}


def probe(url: str, deadline: float) -> Iterator[Finding]:
    """One finding per model of the server at `url`, each from one real call of batch 1.

    The models of the server loop are sent a picture that they refuse, so a probe makes none. A component whose queue
    is full answers, in its way. `deadline`, in seconds, bounds each call. Raises `InputError` for a bad URL.
    """
    calls = open_calls(url, deadline)
    try:
        executor = TritonExecutor(url, deadline=deadline, transport=calls)
    except InputError:
        raise
    except ParureError as error:
        calls.close()
        yield Finding("server", False, str(error))
        return
    with executor:
        yield Finding("server", True, f"Triton {executor.server_version()} over {executor.name}")
        yield Finding(MANIFEST_MODEL, True, f"bundle {executor.identity[:12]}...")
        for component in executor.manifest.components:
            yield _component(executor, component, calls)
        for model in (TRYON_MODEL, UNARY_MODEL):
            yield _loop_model(calls, model, url, deadline)


def _component(executor: TritonExecutor, component: Component, calls: PictureCalls) -> Finding:
    inputs: dict[str, Array] = {spec.name: np.full((1, *spec.shape), 0.5, spec.dtype) for spec in component.inputs}
    try:
        executor.run(component.name, inputs)
    except ServerUnavailable as error:
        if calls.live():
            return Finding(component.name, True, "takes no more calls for now")
        return Finding(component.name, False, f"unready: {error}", _REMEDY)
    except ParureError as error:
        return Finding(component.name, False, f"unready: {error}", _REMEDY)
    return Finding(component.name, True, "answers")


def _loop_model(calls: PictureCalls, model: str, url: str, deadline: float) -> Finding:
    """The tensors are well formed, so it is the model itself that refuses the empty picture: a sign of life."""
    if model == TRYON_MODEL and not calls.streams:
        return Finding(model, None, "answers over gRPC only")
    try:
        with translated(f"model {model!r} at {url}", deadline):
            if model == TRYON_MODEL:
                calls.start(_NO_PICTURE, deadline, "probe", None).close()
            else:
                calls.infer(model, _NO_PICTURE)
    except ModelUnavailable:
        return Finding(model, None, "not served; the loop runs at the client")
    except CallRefused:
        return Finding(model, True, "answers")
    except ServerError as error:
        return Finding(model, False, f"unready: {error}", _REMEDY)
    return Finding(model, False, "unready: made a picture of nothing")
