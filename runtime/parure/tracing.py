"""The W3C trace context of the caller, where OpenTelemetry is installed (extra `trace`) and a span is open."""

from __future__ import annotations


def current_traceparent() -> str | None:
    """`traceparent` of the current span; None without OpenTelemetry, or outside of any span."""
    try:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    except ImportError:
        return None
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
