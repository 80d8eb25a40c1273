"""One look for all charts. Colours read on light and on dark; the page sets those of text and grid."""

from __future__ import annotations

from typing import Any

BLUE, ORANGE, GREEN, PLUM, TEAL, ROSE, GREY = (
    "#4a7fb5", "#d08a3e", "#6a9a5b", "#9a6fa8", "#3f9c95", "#c4626b", "#8b95a1",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PLUM, TEAL, ROSE, GREY)
PARTS = {
    "unet": BLUE,
    "unet_shallow": "#86acd2",
    "reference_net": ORANGE,
    "mask_head": ROSE,
    "vae_encoder": GREEN,
    "vae_decoder": TEAL,
    "image_encoder": PLUM,
}
FONT = "Inter, 'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', sans-serif"
INK, GRID = "#2b3440", "#e3e7ec"


def styled(figure: Any, height: int) -> Any:
    """The layout that all charts share."""
    figure.update_layout(
        template="none",
        height=height,
        font={"family": FONT, "size": 13, "color": INK},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 72, "r": 28, "t": 44, "b": 64},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.06, "xanchor": "left", "x": 0},
        hoverlabel={"font": {"family": FONT}},
    )
    axis = {
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GREY,
        "ticks": "outside",
        "tickcolor": GREY,
        "ticklen": 4,
    }
    figure.update_xaxes(title_standoff=8, title_font_size=13, **axis)
    figure.update_yaxes(title_standoff=8, title_font_size=13, **axis)
    return figure


def subtitles(figure: Any) -> None:
    """The titles of subplots as quiet as axis titles."""
    for annotation in figure.layout.annotations:
        annotation.font = {"size": 13, "color": GREY}


def part_colour(name: str, index: int) -> str:
    return PARTS.get(name, COLOURS[index % len(COLOURS)])
