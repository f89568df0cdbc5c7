"""The report: one page that needs nothing else, the same in Markdown and JSON, and the numbers of each figure."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossover.evidence.display import duration
from crossover.evidence.facts import Findings, find
from crossover.evidence.files import dumps, write_text
from crossover.evidence.plots import COLOURS, ArmCurves, Figure, compute_figure, epochs_figure, scores_figure
from crossover.evidence.view import View, arm_curves, read_view

# Markdown is read from top to bottom: of the decisions that are not an online controller's, so many are shown.
DECISIONS_SHOWN = 40


def write_report(folder: str | Path) -> Path:
    """Write the report of a study, or of a single run.

    Beside `report.html` come `report.md`, `report.json`, and in `report/` each figure as SVG and its numbers as CSV.

    Args:
        folder: The study's or the run's folder; unfinished ones get a report that says what is missing.

    Returns:
        The path of `report.html`.

    Raises:
        RunError: The folder is neither, or a file in it is broken.
    """
    view = read_view(folder)
    curves = arm_curves(view)
    findings = find(view, curves)
    figures = _figures(view, curves, findings)
    for figure in figures:
        write_text(view.folder / "report" / f"{figure.name}.svg", figure.standalone)
        write_text(view.folder / "report" / f"{figure.name}.csv", figure.csv)
    write_text(view.folder / "report.json", dumps(findings.facts, indent=2) + "\n")
    write_text(view.folder / "report.md", markdown(findings.facts, figures))
    page = view.folder / "report.html"
    write_text(page, render(findings.facts, figures))
    return page


def _figures(view: View, curves: Sequence[ArmCurves], findings: Findings) -> list[Figure]:
    figures = [compute_figure(curves), epochs_figure(curves)] if curves else []
    if findings.comparison is not None:
        figures.insert(1, scores_figure(findings.comparison, list(view.arms)))
    return figures


def render(facts: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Fill the page's template; everything but our own figures is escaped.

    Args:
        facts: What `find` worked out.
        figures: The first is the main one.

    Returns:
        The page.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crossover.evidence", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "duration": duration,
        "value": value,
        "norms": norms,
        "times": decision_times,
    }
    return environment.get_template("report.html.j2").render(
        facts=facts,
        figures=[{"name": item.name, "title": item.title, "caption": item.caption, "svg": Markup(item.svg)}
                 for item in figures],
        colours={row["arm"]: COLOURS[index % len(COLOURS)] for index, row in enumerate(facts["arms"])},
    )  # fmt: skip


def number(amount: Any, form: str = ".3f") -> str:
    """Write a number, or a dash where there is none."""
    return format(amount, form) if isinstance(amount, int | float) and not isinstance(amount, bool) else "-"


def signed(amount: Any) -> str:
    """Write a difference with its sign."""
    return number(amount, "+.3f")


def value(item: Any) -> str:
    """Write any recorded value on one line."""
    if isinstance(item, float):
        return f"{item:.6g}"
    return item if isinstance(item, str) else dumps(item)


def norms(row: Mapping[str, Any]) -> str:
    """Write the gradient norm before and after a decision, or a dash where none was recorded."""
    before, after = row["grad_norm_before"], row["grad_norm_after"]
    return "-" if before is None and after is None else f"{number(before, '.3g')} → {number(after, '.3g')}"


def decision_times(epochs_by_seed: Mapping[Any, Sequence[float]]) -> str:
    """Write the epochs of each seed's decisions, or a dash where no seed has one."""
    parts = [
        f"seed {seed}: {', '.join(f'{epochs:.2f}' for epochs in moments)}"
        for seed, moments in epochs_by_seed.items()
        if moments
    ]
    return "; ".join(parts) or "-"


def markdown(facts: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Write the report's main numbers as Markdown.

    Args:
        facts: What `find` worked out.
        figures: They are linked.

    Returns:
        The text.
    """
    lines = [f"# {_cell(facts['name'])}", "", _cell(facts["verdict"]), ""]
    if figures:
        lines += [f"![{figures[0].title}](report/{figures[0].name}.svg)", ""]
    header = ("arm", "mode", "test bits per byte [95%]", "nats per token", "difference [95%]", "epochs", "FLOPs",
              "parameters", "tuning trials", "wall time")  # fmt: skip
    lines += _table(header, [_arm_cells(row) for row in facts["arms"]])
    if facts["crossings"]:
        cells = [(row["challenger"], row["kind"], row["sentence"]) for row in facts["crossings"]]
        lines += ["## Crossings", "", *_table(("arm", "compared at", "result"), cells)]
    lines += _regret_lines(facts["regret"])
    lines += ["## Are the runs matched?", "", *_proof_lines(facts["proof"])]
    lines += _decision_lines([row for row in facts["decisions"] if row["reason"]])
    if facts["missing"]:
        cells = [(row["run"], row["why"]) for row in facts["missing"]]
        lines += ["## Not finished", "", *_table(("run", "why"), cells)]
    lines += ["## How to reproduce", "", *[f"    {command}" for command in facts["reproduce"]], ""]
    return "\n".join(lines)


def _arm_cells(row: Mapping[str, Any]) -> tuple[Any, ...]:
    score = row["score"]
    shown = ("-", "-", "-", "-")
    if score:
        interval, gap = score["interval"], score["difference_interval"]
        shown = (
            f"{score['procedure']}, {'exact' if score['exact'] else 'upper bound'}",
            f"{score['bits_per_byte']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]",
            f"{score['loss_nats']:.3f}",
            f"{score['difference']:+.3f} [{gap[0]:.3f}, {gap[1]:.3f}]" if score["difference"] else "best",
        )
    return (
        row["arm"], *shown, number(row["epochs"], ".3g"), number(row["flops"], ".2e"), number(row["parameters"], ",d"),
        row["tuning_trials"], duration(row["wall_seconds"]),
    )  # fmt: skip


def _regret_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    header = ("arm", "controller", "mode", "dev bits per byte [95%]", "test bits per byte [95%]",
              "difference on test [95%]", "reaches masked's best dev loss at", "decisions at epochs")  # fmt: skip
    cells = [
        (
            row["arm"], row["controller"], f"{row['procedure']}, {'exact' if row['exact'] else 'upper bound'}",
            *(f"{row[split]:.3f} [{row[span][0]:.3f}, {row[span][1]:.3f}]"
              for split, span in (("dev_bits", "dev_interval"), ("test_bits", "test_interval"))),
            row["told"], row["reach_told"], decision_times(row["decision_epochs"]),
        )
        for row in rows
    ]  # fmt: skip
    return ["## Against the best static arm", "", *_table(header, cells)]


def _decision_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    others = [index for index, row in enumerate(rows) if row["controller"] != "online"]
    left_out = set(others[DECISIONS_SHOWN:])
    shown = [row for index, row in enumerate(rows) if index not in left_out]
    header = ("arm", "seed", "epoch", "mix", "gradient norm before → after", "why")
    cells = [
        (row["arm"], row["seed"], number(row["epochs"], ".2f"), row["mix"], norms(row), row["reason"]) for row in shown
    ]
    left = [f"{len(shown)} of {len(rows)} decisions are shown; all are in report.json.", ""]
    return ["## Decisions", "", *_table(header, cells), *(left if len(shown) < len(rows) else ())]


def _proof_lines(proof: Mapping[str, Any] | None) -> list[str]:
    if proof is None:
        return ["There is only one run; nothing to match.", ""]
    checked = f"{proof['checked']} keys of {proof['runs']} runs were compared"
    handicap = [_cell(proof["handicap"]), ""] if proof["handicap"] else []
    if proof["matched"]:
        return [f"Yes: {checked}, nothing differs but what the study declares.", "", *handicap]
    rows = [(item["key"], item["why"], value(item["values"])) for item in proof["mismatches"]]
    return [f"**No**: {checked}, {len(rows)} differ.", "", *_table(("key", "rule", "values"), rows), *handicap]


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(_cell(item) for item in row) + " |" for row in rows]
    return [*lines, ""]


def _cell(item: Any) -> str:
    """Escape what Markdown (and the HTML in it) would take for its own."""
    return html.escape(str(item), quote=False).replace("|", "\\|").replace("\n", " ")
