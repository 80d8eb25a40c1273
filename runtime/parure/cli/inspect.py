"""`parure inspect`: everything in a bundle, on one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from parure.bundle import Bundle
from parure.engine import open_record, plans
from parure.errors import BundleError
from parure.manifest import Manifest
from parure.modes import has_deep


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what BUNDLE holds: components, graphs, precision, solvers, parity, engines."""
    opened = Bundle.open(bundle)
    graphs, kept = (_report(opened, name) for name in ("graphs", "precision"))
    engines = [_engine(plan) for plan in plans(opened.root)]
    if as_json:
        content = {"identity": opened.identity, "manifest": opened.manifest.model_dump(mode="json")}
        click.echo(json.dumps(content | {"graphs": graphs, "kept_in_fp32": kept, "engines": engines}, indent=2))
        return
    console = Console()
    _print_summary(console, opened)
    console.print(_components(opened.manifest, graphs, kept))
    if graphs:
        console.print(_graphs(graphs))
    console.print(_parity(opened.manifest))
    if engines:
        console.print(_engines(engines))


def _report(bundle: Bundle, name: str) -> dict[str, Any]:
    file = f"reports/{name}.json"
    if file not in bundle.manifest.files:
        return {}
    content: dict[str, Any] = json.loads((bundle.root / file).read_bytes())
    return content


def _engine(plan: Path) -> dict[str, Any]:
    try:
        return {"plan": f"{plan.parent.name}/{plan.name}", **open_record(plan).model_dump(mode="json")}
    except BundleError as error:
        return {"plan": f"{plan.parent.name}/{plan.name}", "error": str(error)}


def _print_summary(console: Console, bundle: Bundle) -> None:
    m = bundle.manifest
    g, loop = m.geometry, m.loop
    console.print(f"[bold]{bundle.root}[/]  {m.pipeline}, {m.precision.value}, batches up to {m.max_batch}")
    console.print(f"identity {bundle.identity}\ncheckpoint {m.checkpoint_sha256}")
    console.print(
        f"crop {g.size} px ({g.enlarge:g} x the box, pasted by {g.compose}), latents {g.latent_channels} x "
        f"{g.latent_size}², features {m.features.length} elements in {len(m.features.layers)} layers"
    )
    console.print(
        f"loop: {loop.default_steps} steps of {loop.default_solver}, guidance {loop.guidance}, ornament features "
        f"{'cached' if loop.ornament_features_cacheable else 'computed every time'}, deep features "
        f"{'can be reused' if has_deep(m) else 'cannot be reused (parure export --deep-reuse)'}"
    )
    console.print("solvers: " + ", ".join(f"{s.name} (up to {s.max_steps})" for s in m.solvers))
    console.print("made with " + ", ".join(f"{name} {version}" for name, version in m.tools.items()))


def _components(manifest: Manifest, graphs: dict[str, Any], kept: dict[str, Any]) -> Table:
    table = Table("component", "parameters", "GFLOP", "MB", "kept in fp32", "inputs -> output, one sample")
    for c in manifest.components:
        tensors = ", ".join(f"{t.name} {t.dtype.removeprefix('float')} {list(t.shape)}" for t in c.inputs)
        outputs = ", ".join(f"{t.name} {t.dtype.removeprefix('float')} {list(t.shape)}" for t in c.outputs)
        table.add_row(
            c.name,
            f"{c.parameters / 1e6:.2f} M",
            f"{c.flops / 1e9:.2f}",
            f"{graphs[c.name]['bytes'] / 1e6:.1f}" if c.name in graphs else "",
            f"{len(kept[c.name])} nodes" if c.name in kept else "",
            f"{tensors} -> {outputs}",
        )
    return table


def _graphs(graphs: dict[str, Any]) -> Table:
    table = Table("graph", "nodes", "by operator", "folded since tracing")
    for name, report in graphs.items():
        nodes, folded = (
            ", ".join(f"{count} {op}" for op, count in list(report[part].items())[:8]) for part in ("nodes", "folded")
        )
        table.add_row(name, str(sum(report["nodes"].values())), nodes, folded)
    return table


def _parity(manifest: Manifest) -> Table:
    parity = manifest.parity
    table = Table("parity with PyTorch", "largest relative error", "tolerance")
    for component in parity.components:
        table.add_row(component.component, f"{component.max_relative_error:.1e}", f"{component.tolerance:.0e}")
    table.add_row("whole loop", f"{parity.loop_max_relative_error:.1e}", f"{parity.loop_tolerance:.0e}")
    table.add_row("picture", f"{parity.picture_psnr:.1f} dB", "")
    table.add_row("mask", f"IoU {parity.mask_iou:.4f}", "")
    return table


def _engines(engines: list[dict[str, Any]]) -> Table:
    table = Table("plan", "batches", "precision", "MB", "built with", "seconds")
    for e in engines:
        if "error" in e:
            table.add_row(e["plan"], "[red]refused[/]", e["error"])
            continue
        batches = e["batches"]
        span = str(batches["max"]) if batches["min"] == batches["max"] else f"{batches['min']}..{batches['max']}"
        built = f"{e['flavor']} {e['flavor_version']}"
        size = f"{e['plan_bytes'] / 1e6:.1f}"
        table.add_row(e["plan"], span, e["precision"], size, built, f"{e['build_seconds']:.1f}")
    return table
