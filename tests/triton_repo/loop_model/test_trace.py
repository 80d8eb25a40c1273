"""The caller's W3C trace context on a real server: at every component call, and in Triton's own OpenTelemetry spans."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import parure
from parure.image import Pixels
from parure_triton.repository import write_repository

trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the OpenTelemetry SDK")
Serving = Callable[..., AbstractContextManager[dict[str, int]]]
Span = dict[str, Any]
TRIES = 3  # Triton 2.51 overlooks the caller's context in one call of some hundred, on a busy machine
LISTENING = '''

class TritonPythonModel(TritonPythonModel):
    """Writes down what each request brings."""

    def initialize(self, args):
        super().initialize(args)
        self.name = args["model_name"]

    def execute(self, requests):
        for request in requests:
            said = {"call": self.name, "id": request.request_id(), **json.loads(request.parameters() or "{}")}
            print(json.dumps(said), file=sys.stderr, flush=True)
        return super().execute(requests)
'''


@contextmanager
def collector() -> Iterator[tuple[str, list[Span]]]:
    """The URL of an OpenTelemetry collector, and the spans that it has got."""
    spans: list[Span] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # Triton's exporter loses spans where the connection does not stay open

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            spans.extend(s for r in sent["resourceSpans"] for scope in r["scopeSpans"] for s in scope["spans"])
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/v1/traces", spans
        running.shutdown()


@pytest.fixture
def listening(tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle's repository, whose components write down what they are called with."""
    folders = write_repository(tiny_bundle, tmp_path / "models", threads=1)
    loops = ("manifest", "tryon", "tryon_unary")
    for name in (folder.model.name for folder in folders if folder.model.name not in loops):
        code = tmp_path / "models" / name / "1" / "model.py"
        code.write_text(code.read_text() + "\n\nimport json, sys\n" + LISTENING)
    return tmp_path / "models"


def component_calls(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith('{"call"')]


def traced(tryon: parure.TryOn, picture: Callable[[], parure.Result], log: Path) -> tuple[str, str]:
    """The ids of the trace and of the span of a caller, after every component call was seen to bring them."""
    with trace.TracerProvider().get_tracer("test").start_as_current_span("shop") as span:
        result = picture()
    context = span.get_span_context()
    trace_id = f"{context.trace_id:032x}"
    ours = [call for call in component_calls(log) if call.get("traceparent", "").split("-")[1:2] == [trace_id]]
    parts = {component.name for component in tryon.loop.manifest.components}
    assert Counter(call["call"] for call in ours) == {p: n for p, n in result.calls.items() if p in parts}
    assert len({call["id"] for call in ours}) == 1
    return trace_id, f"{context.span_id:016x}"


def hangs(model: str, trace_id: str, caller: str, spans: list[Span]) -> bool:
    """Whether Triton tells of `model` in that trace, with a span that hangs from the caller's."""
    until = time.monotonic() + 15
    while time.monotonic() < until:
        found = [span for span in spans if span["traceId"] == trace_id]
        # a child may come before its parent
        if model in {span["name"] for span in found} and caller in {span["parentSpanId"] for span in found}:
            return True
        time.sleep(0.1)
    return False


def test_the_callers_trace_reaches_every_component_call_and_tritons_own_spans(
    listening: Path, native_server: Serving, photo: Pixels, ornament: Pixels, tmp_path: Path
) -> None:
    log = tmp_path / "triton.log"
    with collector() as (url, spans):
        settings = ("mode=opentelemetry", "rate=1", "level=TIMESTAMPS")
        exporter = (f"opentelemetry,url={url}", "opentelemetry,bsp_schedule_delay=100")
        flags = ["--model-repository=/models", *(f"--trace-config={each}" for each in (*settings, *exporter))]
        with native_server(listening, "python", "", flags) as ports:
            for scheme, model in (("grpc", "tryon"), ("http", "tryon_unary")):
                with parure.open(f"{scheme}://127.0.0.1:{ports[scheme]}") as tryon:
                    picture = partial(tryon, photo, ornament, (30.0, 40.0, 70.0, 75.0), steps=3)
                    seen = (hangs(model, *traced(tryon, picture, log), spans) for _ in range(TRIES))
                    assert any(seen), f"Triton told of no {model}, but of {[span['name'] for span in spans]}"
                    untraced = picture()
                    assert sum(untraced.calls.values()) <= sum("traceparent" not in c for c in component_calls(log))
