"""The page of the controller studies."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages.place import PAGES, fill, keep


def write_controllers(studies: Mapping[str, Path]) -> None:
    """Write the page of the controller studies."""
    reports = {name: _anonymous(folder) for name, folder in studies.items()}
    for name, (report, text) in reports.items():
        figure = f"controllers-{name}.svg"
        shutil.copy(studies[name] / "report" / "loss-against-compute.svg", PAGES / figure)
        decisions = [line for line in _section(text, "Decisions") if line.startswith(("| arm", "|---", "| online"))]
        parts = [
            report["verdict"],
            f"![Loss against compute]({figure})",
            *_paragraphs(text, "Against the best static arm"),
        ]
        parts += [*_paragraphs(text, "Are the runs matched?"), "What `online` decided:", "\n".join(decisions)]
        fill("controllers.md", name, "\n\n".join(parts))
    fill("controllers.md", "regrets", regrets({name: report for name, (report, _) in reports.items()}))
    wanted = ("verdict", "text", "arms", "regret", "crossings", "decisions", "tuning", "proof")
    keep("controllers.json", {name: {key: report[key] for key in wanted} for name, (report, _) in reports.items()})


def _anonymous(folder: Path) -> tuple[dict[str, Any], str]:
    """Read a report; where its text came from a file, the file's place is nobody's business."""

    def clean(text: str) -> str:
        return re.sub(r"(?<![\w.])/[\w./-]+\.jsonl(\.gz)?", "a text of the user", text)

    return json.loads(clean((folder / "report.json").read_text("utf-8"))), clean(
        (folder / "report.md").read_text("utf-8")
    )


def _section(text: str, title: str) -> list[str]:
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    if found is None:
        raise SystemExit(f"the report has no section '{title}'; write it anew with `crossover report`")
    return found[1].strip().splitlines()


def _paragraphs(text: str, title: str) -> list[str]:
    return "\n".join(_section(text, title)).split("\n\n")


def regrets(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Write what each arm loses to the best static arm of each setting, and at worst."""
    rows = {name: {row["arm"]: row for row in report["regret"]} for name, report in reports.items()}
    arms = next(iter(rows.values()))
    lines = [f"| arm | {' | '.join(f'{name} ({_seeds(reports[name])})' for name in rows)} | at worst |"]
    lines.append("|---" * (len(rows) + 2) + "|")
    worst = {arm: max(_lost(row[arm]) for row in rows.values()) for arm in arms}
    for arm in sorted(arms, key=lambda name: worst[name]):
        lines.append(f"| {arm} | {' | '.join(_regret(row[arm]) for row in rows.values())} | {worst[arm]:+.3f} |")
    return "\n".join(lines)


def _seeds(report: Mapping[str, Any]) -> str:
    count = report["arms"][0]["finished"]
    return f"{count} seed{'s' if count > 1 else ''}"


def _lost(row: Mapping[str, Any]) -> float:
    return 0.0 if row["regret_bits"] is None else float(row["regret_bits"])


def _regret(row: Mapping[str, Any]) -> str:
    if row["arm"] == row["against"]:
        return "the best static arm"
    low, high = row["regret_interval"]
    return f"{row['regret_bits']:+.3f} [{low:+.3f}, {high:+.3f}]"
