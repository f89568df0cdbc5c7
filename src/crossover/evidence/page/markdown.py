"""The report as Markdown: what the page tells, for a terminal or a pull request."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from crossover.evidence.display import duration
from crossover.evidence.page.drawing import Figure
from crossover.evidence.page.words import decision_times, norms, number, points_told, value

# Markdown is read from top to bottom: of the decisions that are not an online controller's, so many are shown.
DECISIONS_SHOWN = 40


def markdown(facts: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Write the report's main numbers as Markdown.

    Args:
        facts: What `find` worked out.
        figures: They are linked.

    Returns:
        The text.
    """
    lines = [f"# {_cell(facts['name'])}", "", f"**{_cell(facts['headline'])}**", "", _cell(facts["verdict"]), ""]
    if figures:
        lines += [f"![{figures[0].title}](report/{figures[0].name}.svg)", ""]
    header = ("arm", "mode", "test bits per byte [95%]", "nats per token", "difference [95%]", "epochs", "FLOPs",
              "parameters", "tuning trials", "wall time")  # fmt: skip
    lines += _table(header, [_arm_cells(row) for row in facts["arms"]])
    lines += [points_told(facts["decayed"]), ""] if facts["branches"] else []
    if facts["crossings"]:
        cells = [(row["challenger"], row["kind"], row["sentence"]) for row in facts["crossings"]]
        lines += ["## Crossings", "", *_table(("arm", "compared at", "result"), cells)]
    lines += _regret_lines(facts["regret"])
    lines += ["## Are the runs matched?", "", *_proof_lines(facts["proof"])]
    lines += _decision_lines([row for row in facts["decisions"] if row["reason"]])
    if facts["missing"]:
        cells = [(row["run"], row["why"]) for row in facts["missing"]]
        lines += ["## Not finished", "", *_table(("run", "why"), cells)]
    # Every line of a command is indented: one that is not would be Markdown again.
    commands = [f"    {line}" for command in facts["reproduce"] for line in command.splitlines()]
    lines += ["## How to reproduce", "", *commands, ""]
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
