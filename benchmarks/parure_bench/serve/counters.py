"""What a Triton server counts itself: calls and executions of its models, ornaments that it had cached."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from parure.errors import ServerUnavailable

METRICS_PORT = 8002


@dataclass(frozen=True)
class Counters:
    """Since the server's start. Calls divided by executions are the mean batch."""

    unet_calls: float
    unet_executions: float
    reference_calls: float
    reference_executions: float
    cache_hits: float
    cache_misses: float

    def __sub__(self, earlier: Counters) -> Counters:
        return Counters(*(getattr(self, name) - getattr(earlier, name) for name in self.__dataclass_fields__))

    def figures(self) -> dict[str, float]:
        """Mean batches and the share of cached ornaments, of what there was any of."""
        figures = {}
        for name, calls, runs in (
            ("mean_unet_batch", self.unet_calls, self.unet_executions),
            ("mean_reference_net_batch", self.reference_calls, self.reference_executions),
            ("ornament_hits", self.cache_hits, self.cache_hits + self.cache_misses),
        ):
            if runs > 0:
                figures[name] = calls / runs
        return figures


def read_counters(metrics_url: str) -> Counters:
    """Raises `ServerUnavailable` where nothing like Triton's metrics is at `metrics_url`."""
    try:
        with urllib.request.urlopen(metrics_url, timeout=5) as reply:
            text = reply.read().decode(errors="replace")
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ServerUnavailable(
            f"no metrics at {metrics_url} ({error}); name Triton's metrics with --metrics, such as "
            f"http://127.0.0.1:{METRICS_PORT}/metrics"
        ) from error

    def total(name: str, **labels: str) -> float:
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = re.findall(rf"^{name}{{([^}}]*)}} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for given, value in lines if all(label in given for label in wanted))

    calls, runs = "nv_inference_request_success", "nv_inference_exec_count"
    return Counters(
        unet_calls=total(calls, model="unet"),
        unet_executions=total(runs, model="unet"),
        reference_calls=total(calls, model="reference_net"),
        reference_executions=total(runs, model="reference_net"),
        cache_hits=total("parure_ornament_cache_total", result="hit"),
        cache_misses=total("parure_ornament_cache_total", result="miss"),
    )


def metrics_url(server: str) -> str:
    """Where the metrics of the server at `server` are unless somebody moved them."""
    return f"http://{urlsplit(server).hostname}:{METRICS_PORT}/metrics"
