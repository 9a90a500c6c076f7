"""The curves of a run as SVG and PNG, drawn here: the loss in training and held out, and the learning rate."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from windlass.core.errors import ConfigError
from windlass.core.events import Event, TrainStep
from windlass.training.glyphs import GLYPHS, HEIGHT, WIDTH
from windlass.training.logs import read_log

__all__ = ["Curve", "curves_of", "draw", "to_png", "to_svg"]

_SIZE: Final = (900, 560)
_LEFT, _RIGHT, _GAP, _TOP, _BOTTOM = 76, 20, 58, 46, 48
#: The share of the height that the upper panel takes.
_UPPER: Final = 0.66
_INK, _GRID, _PAPER = (51, 51, 51), (225, 225, 225), (255, 255, 255)
_COLOURS: Final = ((31, 119, 180), (214, 39, 40), (44, 130, 60), (127, 84, 160))
#: A curve of more points is drawn through the means of as many groups of them.
_MOST: Final = 800
#: Pixels are drawn this many times finer and then averaged.
_FINE: Final = 3

Colour = tuple[int, int, int]


class Curve(NamedTuple):
    """A name and its points (step, value) in order of steps; `panel` 0 is the upper one."""

    name: str
    points: list[tuple[float, float]]
    panel: int = 0


class _Line(NamedTuple):
    points: list[tuple[float, float]]
    colour: Colour
    width: float


class _Text(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str
    colour: Colour = _INK


def curves_of(events: Iterable[Event]) -> list[Curve]:
    """Return the curves of a run's events: training loss, held-out loss, learning rate; those without points left out.

    Where a run was taken up again, the later of two values of a step counts.
    """
    kept: dict[str, dict[int, float]] = {"loss": {}, "eval_loss": {}, "lr": {}}
    for event in events:
        if isinstance(event, TrainStep):
            for name, points in kept.items():
                if math.isfinite(event.metrics.get(name, math.nan)):
                    points[event.step] = event.metrics[name]
    names = {"loss": ("training loss", 0), "eval_loss": ("held-out loss", 0), "lr": ("learning rate", 1)}
    found = [(names[key], sorted(points.items())) for key, points in kept.items() if points]
    return [Curve(name, [(float(a), b) for a, b in points], panel) for (name, panel), points in found]


def draw(log: str | Path, folder: str | Path | None = None, title: str = "") -> tuple[Path, Path]:
    """Draw the curves of a `train.jsonl` (or the folder it is in) as `curves.svg` and `curves.png`; return both paths.

    They are written beside the log, or into `folder`. Raises ConfigError when the log cannot be read, has no step, or
    the files cannot be written.
    """
    source = Path(log).expanduser()
    where = Path(folder).expanduser() if folder is not None else source if source.is_dir() else source.parent
    curves = curves_of(read_log(source))
    if not curves:
        raise ConfigError(f"{source} has no step to draw.")
    svg, png = where / "curves.svg", where / "curves.png"
    try:
        svg.write_text(to_svg(curves, title), encoding="utf-8")
        png.write_bytes(to_png(curves, title))
    except OSError as error:
        raise ConfigError(f"Cannot write the curves to {where}: {error.strerror}.") from error
    return svg, png


# -- where everything stands -------------------------------------------------------------------------------------------


def _layout(curves: Sequence[Curve], title: str) -> tuple[list[_Line], list[_Text]]:
    """Return lines and texts in pixels from the upper left."""
    width, height = _SIZE
    lines: list[_Line] = []
    texts = [_Text(_LEFT, 24, title, "start")] if title else []
    steps = [x for curve in curves for x, _ in curve.points]
    across = _ticks(min(steps), max(steps), 8)
    panels = [panel for panel in (0, 1) if any(curve.panel == panel for curve in curves)]
    inner = height - _TOP - _BOTTOM - _GAP * (len(panels) - 1)
    top = float(_TOP)
    for panel in panels:
        tall = inner * (1.0 if len(panels) == 1 else _UPPER if panel == 0 else 1 - _UPPER)
        own = [(number, curve) for number, curve in enumerate(curves) if curve.panel == panel]
        box = (float(_LEFT), top, float(width - _RIGHT), top + tall)
        values = [y for _, curve in own for _, y in _thinned(curve.points)]
        _panel(lines, texts, box, (min(steps), max(steps)), _bounds(values), across)
        span = _bounds(values)
        right = box[2]
        for number, curve in reversed(own):
            colour = _COLOURS[number % len(_COLOURS)]
            places = [_place(point, box, (min(steps), max(steps)), span) for point in _thinned(curve.points)]
            lines.append(
                _Line(places if len(places) > 1 else [places[0], (places[0][0] + 3, places[0][1])], colour, 1.8)
            )
            texts.append(_Text(right, top - 9, curve.name, "end", colour))
            right -= 8.0 * len(curve.name) + 24
        top += tall + _GAP
    texts.append(_Text(width - _RIGHT, height - 10, "step", "end"))
    return lines, texts


def _panel(
    lines: list[_Line],
    texts: list[_Text],
    box: tuple[float, float, float, float],
    steps: tuple[float, float],
    span: tuple[float, float],
    across: list[float],
) -> None:
    """Add the grid, the frame and the numbers of a panel."""
    left, top, right, bottom = box
    for value in _ticks(*span, 6):
        y = _place((steps[0], value), box, steps, span)[1]
        lines.append(_Line([(left, y), (right, y)], _GRID, 1.0))
        texts.append(_Text(left - 8, y + 4, _number(value), "end"))
    for value in across:
        x = _place((value, span[0]), box, steps, span)[0]
        lines.append(_Line([(x, top), (x, bottom)], _GRID, 1.0))
        texts.append(_Text(x, bottom + 18, _number(value), "middle"))
    lines.append(_Line([(left, top), (left, bottom), (right, bottom)], _INK, 1.2))


def _place(
    point: tuple[float, float],
    box: tuple[float, float, float, float],
    steps: tuple[float, float],
    span: tuple[float, float],
) -> tuple[float, float]:
    left, top, right, bottom = box
    along = (point[0] - steps[0]) / ((steps[1] - steps[0]) or 1.0)
    up = (point[1] - span[0]) / ((span[1] - span[0]) or 1.0)
    return left + along * (right - left), bottom - up * (bottom - top)


def _bounds(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (0.0 if 0 <= low < (high - low) * 0.35 else low - room), high + room


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between low and high, at most `most`."""
    if high <= low:
        return [low]
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    """Return a number as short as it can be read: 250, 1500, 12k, 0.75, 3e-4."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4:
        return f"{value / 1e3:.4g}k"
    if size == 0 or size >= 0.01:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MOST:
        return points
    array: NDArray[np.float64] = np.array(points)
    return [(float(x), float(y)) for x, y in [group.mean(0) for group in np.array_split(array, _MOST)]]


# -- the two forms -----------------------------------------------------------------------------------------------------


def to_svg(curves: Sequence[Curve], title: str = "") -> str:
    """Return an SVG document of the curves."""
    width, height = _SIZE
    lines, texts = _layout(curves, title)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="{width}" height="{height}" fill="#fff"/>'
    ]
    for line in lines:
        points = " ".join([f"{x:.1f},{y:.1f}" for x, y in line.points])
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="rgb{line.colour}" stroke-width="{line.width}" '
            'stroke-linejoin="round"/>'
        )
    parts += [
        f'<text x="{text.x:.1f}" y="{text.y:.1f}" text-anchor="{text.anchor}" fill="rgb{text.colour}">'
        f"{escape(text.text)}</text>"
        for text in texts
    ]
    return "\n".join([*parts, "</svg>", ""])


def to_png(curves: Sequence[Curve], title: str = "") -> bytes:
    """Return the same picture as a PNG file, 900 x 560."""
    width, height = _SIZE
    fine: NDArray[np.uint8] = np.full((height * _FINE, width * _FINE, 3), 255, np.uint8)
    lines, texts = _layout(curves, title)
    for line in lines:
        for begin, end in zip(line.points, line.points[1:], strict=False):
            _stroke(fine, begin, end, line.width, line.colour)
    pixels = fine.reshape(height, _FINE, width, _FINE, 3).mean((1, 3)).astype(np.uint8)
    for text in texts:
        _letters(pixels, text)
    rows = b"".join([b"\0" + row.tobytes() for row in pixels])
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        ]
    )


def _stroke(
    pixels: NDArray[np.uint8], begin: tuple[float, float], end: tuple[float, float], width: float, colour: Colour
) -> None:
    """Colour the pixels that are at most half of `width` from a piece of a line."""
    (x0, y0), (x1, y1) = [(x * _FINE, y * _FINE) for x, y in (begin, end)]
    half = width * _FINE / 2
    left, right = (max(0, math.floor(min(x0, x1) - half)), min(pixels.shape[1], math.ceil(max(x0, x1) + half) + 1))
    top, bottom = (max(0, math.floor(min(y0, y1) - half)), min(pixels.shape[0], math.ceil(max(y0, y1) + half) + 1))
    if left >= right or top >= bottom:
        return
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / (length or 1.0), 0, 1)
    near = (x - x0 - along * (x1 - x0)) ** 2 + (y - y0 - along * (y1 - y0)) ** 2 <= half * half
    pixels[top:bottom, left:right][near] = colour


def _letters(pixels: NDArray[np.uint8], text: _Text) -> None:
    """Write a text of 5 x 7 letters whose baseline ends at y."""
    wide = len(text.text) * WIDTH
    x = round(text.x - {"start": 0, "middle": wide / 2, "end": wide}[text.anchor])
    y = round(text.y) - HEIGHT
    for letter in text.text:
        for row, line in enumerate(GLYPHS.get(letter.lower(), GLYPHS["?"])):
            for column, dot in enumerate(line):
                if dot == "#" and 0 <= y + row < pixels.shape[0] and 0 <= x + column < pixels.shape[1]:
                    pixels[y + row, x + column] = text.colour
        x += WIDTH
