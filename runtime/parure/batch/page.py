"""A page of thumbnails to look at: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import html
import random
import threading
from io import BytesIO

from PIL import Image

from parure.batch.results import Outcome
from parure.batch.store import Store
from parure.errors import ParureError
from parure.image import load_image

NAME = "index.html"
_SHOWN = 200
_SIDE = 240
_STYLE = """body{font:14px system-ui,sans-serif;margin:24px;color:#202124;background:#faf9f6}
main{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;width:240px}img{width:100%;border-radius:4px}
figcaption{font-size:12px;color:#787a80;overflow-wrap:anywhere}li{margin:4px 0}h2{font-size:16px;color:#c43a30}"""


class Gallery:
    """Keeps a fair sample of the outcomes, whatever their number. Safe to share between threads."""

    def __init__(self, shown: int = _SHOWN) -> None:
        self._done, self._other = _Sample(shown), _Sample(shown)
        self._lock = threading.Lock()

    def add(self, outcome: Outcome) -> None:
        with self._lock:
            (self._done if outcome.status == "done" else self._other).add(outcome)

    def write(self, store: Store, title: str) -> None:
        """Raises `StorageError` where the page cannot be written; a picture that cannot be read is left out."""
        figures = "".join(_figure(store, outcome) for outcome in self._done.sorted())
        others = "".join(
            f"<li>row {o.row.row}{_named(o)}: <b>{o.status}</b>, {html.escape(o.record.reason)}</li>"
            for o in self._other.sorted()
        )
        counts = f"{len(self._done.kept)} of {self._done.seen:,} pictures"
        parts = [
            f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>",
            f"<h1>{html.escape(title)}</h1><p>{counts}</p><main>{figures}</main>",
            f"<h2>Not done: {len(self._other.kept)} of {self._other.seen:,}</h2><ul>{others}</ul>" if others else "",
        ]
        store.put({NAME: "".join(parts).encode()})


class _Sample:
    """Reservoir sampling: each of those seen is kept with the same chance."""

    def __init__(self, size: int) -> None:
        self.size, self.seen = size, 0
        self.kept: list[Outcome] = []
        self._random = random.Random(0)

    def add(self, outcome: Outcome) -> None:
        self.seen += 1
        if len(self.kept) < self.size:
            self.kept.append(outcome)
        elif (place := self._random.randrange(self.seen)) < self.size:
            self.kept[place] = outcome

    def sorted(self) -> list[Outcome]:
        return sorted(self.kept, key=lambda outcome: outcome.row.row)


def _figure(store: Store, outcome: Outcome) -> str:
    try:
        pixels = load_image(store.read(outcome.record.picture), subject="picture")
    except ParureError:
        return ""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    stream = BytesIO()
    image.save(stream, format="JPEG", quality=80)
    source = base64.b64encode(stream.getvalue()).decode()
    name = html.escape(outcome.record.picture, quote=True)
    caption = f"row {outcome.row.row}{_named(outcome)}, {outcome.record.seconds.get('total', 0):.2f} s"
    return f'<figure><a href="{name}"><img src="data:image/jpeg;base64,{source}" alt=""></a><figcaption>{caption}</figcaption></figure>'


def _named(outcome: Outcome) -> str:
    return f" ({html.escape(outcome.row.id)})" if outcome.row.id else ""
