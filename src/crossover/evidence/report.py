"""The report: one page that needs nothing else, the same in Markdown and JSON, and the numbers of each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossover.evidence.facts import Findings, find
from crossover.evidence.files import dumps, write_text
from crossover.evidence.page.handover import norms_figure
from crossover.evidence.page.markdown import markdown
from crossover.evidence.page.render import Figures, Live, render
from crossover.evidence.page.reuse import reuse_figure
from crossover.evidence.page.steering import steering_figures
from crossover.evidence.page.words import encodable
from crossover.evidence.plots import ArmCurves, compute_figure, epochs_figure, scores_figure
from crossover.evidence.view import View, arm_curves, read_view


@dataclass(frozen=True)
class Report:
    """Everything that a report says, not yet written anywhere.

    Args:
        facts: Every number.
        figures: The figures.
        notes: Sentences on what could not be drawn.
    """

    facts: Mapping[str, Any]
    figures: Figures
    notes: tuple[str, ...]

    def page(self, live: Live | None = None) -> str:
        """Give the report as one HTML page."""
        return render(self.facts, self.figures, self.notes, live)

    def texts(self, live: Live | None = None) -> dict[str, str]:
        """Give the report as files.

        Args:
            live: How a served page stays fresh; None for a page that is a file.

        Returns:
            Text by path below the folder, the page last. All of it can be encoded, whatever names and records hold.
        """
        made: dict[str, str] = {}
        for figure in self.figures.all:
            made[f"report/{figure.name}.svg"] = figure.standalone
            made[f"report/{figure.name}.csv"] = figure.csv
        made["report.json"] = dumps(self.facts, indent=2) + "\n"
        made["report.md"] = markdown(self.facts, self.figures.all)
        made["report.html"] = self.page(live)
        return {path: encodable(text) for path, text in made.items()}


def build_report(folder: str | Path) -> Report:
    """Work out the report of a study, or of a single run, and write nothing.

    Args:
        folder: The study's or the run's folder; unfinished ones get a report that says what is missing.

    Returns:
        The report.

    Raises:
        RunError: The folder is neither, or a file in it is broken.
    """
    view = read_view(folder)
    curves = arm_curves(view)
    findings = find(view, curves)
    decisions, notes = steering_figures(view)
    figures = Figures(
        main=compute_figure(curves, findings.crossings) if curves else None,
        curves=tuple(_curve_figures(view, curves, findings)),
        decisions=tuple(decisions),
        norms=norms_figure(view),
        reuse=reuse_figure(findings.facts["ledger"]),
    )
    return Report(findings.facts, figures, tuple(notes))


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
    report, folder = build_report(folder), Path(folder)
    for path, text in report.texts().items():
        write_text(folder / path, text)
    return folder / "report.html"


def _curve_figures(view: View, curves: Sequence[ArmCurves], findings: Findings) -> list[Any]:
    # One bar is no comparison; the table has its number.
    scores = findings.comparison
    compared = [scores_figure(scores, list(view.arms))] if scores is not None and len(scores.arms) > 1 else []
    return [*compared, *([epochs_figure(curves)] if curves else [])]
