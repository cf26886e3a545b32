"""Pictures of the records: time over size for each topic, and every ratio against its target."""

import hashlib
import io
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks import records
from benchmarks.amounts import amount, limit, short
from benchmarks.records import Measurement

BASELINE, MET, NOT_MET = "#5c6670", "#0b6e4f", "#d1495b"
COLORS = ("#0b6e4f", "#30638e", "#d1495b", "#edae49", "#7b5ea7", "#66b3a1")
MARKERS = "osD^vP"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def scaling(topic: str, path: Path) -> None:
    """Draw a panel for each figure that the records of a topic name; none, no picture."""
    source = records.RESULTS / f"{topic}.csv"
    panels: dict[str, list[Measurement]] = {}
    for measurement in records.read(source)[0]:
        if measurement.figure:
            panels.setdefault(measurement.figure, []).append(measurement)
    if not panels:
        return
    drawn = [m for measurements in panels.values() for m in measurements]
    names = list(dict.fromkeys(_ours_alike(m.candidate) for m in drawn if m.candidate != m.baseline))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows, columns, figsize=(6.6 * columns, 4.6 * rows), layout="constrained", squeeze=False
        )
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
        for place in axes.flat[len(panels) :]:
            place.set_axis_off()
        for place, (title, measurements) in zip(axes.flat, panels.items(), strict=False):
            _panel(place, title, measurements, names)
        save(figure, path, [source])


def _ours_alike(name: str) -> str:
    """Call our functions by how they run, so that each way has one color in all panels."""
    return re.sub(r"^[a-z]+(_[a-z]+)+(?=, )", "ours", name)


def _panel(axes: Axes, title: str, measurements: list[Measurement], names: list[str]) -> None:
    baseline = measurements[0].baseline
    for name in dict.fromkeys(m.candidate for m in measurements):
        points = sorted((m for m in measurements if m.candidate == name), key=lambda m: m.size)
        sizes = [m.size for m in points]
        if name == baseline:
            style = {"color": BASELINE, "marker": "x", "linestyle": "--"}
        else:
            number = names.index(_ours_alike(name))
            style = {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)]}
        label = f"{name} (baseline)" if name == baseline else name
        axes.plot(sizes, [m.p50 for m in points], label=label, markersize=5, linewidth=1.8, **style)
        low, high = ([getattr(m, quantile) for m in points] for quantile in ("p20", "p80"))
        axes.fill_between(sizes, low, high, color=style["color"], alpha=0.18, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(title, loc="left", fontsize=12, weight="bold")
    ticks = sorted({m.size for m in measurements})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: amount(value, measurements[0].unit)))
    axes.set_xlabel(measurements[0].size_unit)
    axes.set_ylabel("time of one call (median; band: middle 60%)")
    widest = max(len(m.candidate) for m in measurements)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), ncols=1 if widest > 32 else 2)


def targets(path: Path) -> None:
    """Draw how much of what its target allows each ratio takes."""
    sources = [records.RESULTS / f"{topic}.csv" for topic in records.topics()]
    aims = [m for source in sources for m in records.read(source)[0] if m.target and not m.target.endswith(" 0")][::-1]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(12, 1.6 + 0.42 * len(aims)), layout="constrained")
        for height, m in enumerate(aims):
            bound = float(m.target.split()[1])
            used = [r / bound if m.target.startswith("<=") else bound / r for r in (m.ratio, m.ratio_p20, m.ratio_p80)]
            color = MET if m.met else NOT_MET
            axes.plot([1, used[0]], [height, height], color=color, linewidth=1.2, alpha=0.5)
            axes.plot(used[1:], [height, height], color=color, linewidth=5, alpha=0.3, solid_capstyle="butt")
            axes.plot(used[0], height, "o", color=color, markersize=7)
        axes.axvline(1, color="#222222", linewidth=1.2)
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        low, high = min(low, 0.24), max(high, 4.2)
        axes.set_xlim(low, high)
        ticks = [2.0**k for k in range(-12, 13) if low <= 2.0**k <= high]
        axes.set_xticks(ticks, [f"{short(tick)} x" for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(-0.7, len(aims) - 0.3)
        axes.set_yticks(range(len(aims)), [_said(m) for m in aims])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("ratio / target (or target / ratio, where the target is a least); dot: median, bar: middle 60%")
        met = sum(m.met for m in aims)
        axes.set_title(
            f"{met} of {len(aims)} targets met: left of the line is met, right of it is not",
            loc="left",
            fontsize=12,
            weight="bold",
        )
        save(figure, path, sources)


def _said(m: Measurement) -> str:
    return f"{m.case}: {m.candidate}\nover {m.baseline}: {short(m.ratio)}, {limit(m.target)}"


def save(figure: Figure, path: Path, sources: list[Path]) -> None:
    """Save with a digest of the records, so that a test can tell whether a picture is theirs."""
    image = io.BytesIO()
    figure.savefig(image, dpi=100, facecolor="white")
    plt.close(figure)
    text = PngInfo()
    text.add_text("Records", digest(sources))
    # few colors: a third of the size
    Image.open(image).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE).save(path, pnginfo=text, optimize=True)


def digest(sources: list[Path]) -> str:
    """Return a digest of records, whatever their order."""
    return hashlib.sha256(b"".join(sorted(source.read_bytes() for source in sources))).hexdigest()
