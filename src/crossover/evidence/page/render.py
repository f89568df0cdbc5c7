"""The page filled: everything but our own figures is escaped, and the browser is told to load and to run nothing."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossover.evidence.display import duration
from crossover.evidence.page.drawing import Figure, colour_of
from crossover.evidence.page.words import decision_times, norms, number, points_told, signed, value


@dataclass(frozen=True)
class Figures:
    """A page's figures by where they stand; what there is nothing to draw of is absent.

    Args:
        main: Loss against compute.
        curves: Further losses, under the table of arms.
        decisions: One for each run whose decisions are shown.
        norms: Gradient norms at the handover.
        reuse: How often the text was seen.
    """

    main: Figure | None = None
    curves: tuple[Figure, ...] = ()
    decisions: tuple[Figure, ...] = ()
    norms: Figure | None = None
    reuse: Figure | None = None

    @property
    def all(self) -> list[Figure]:
        """Every figure, in the order of the page."""
        found = [self.main, *self.curves, *self.decisions, self.norms, self.reuse]
        return [figure for figure in found if figure is not None]


@dataclass(frozen=True)
class Live:
    """What a page says that is served while runs go on.

    Args:
        script: Our own script, which asks for news; it runs only if the server's policy names its hash.
        version: Changes with every rendering.
        every_seconds: How often the browser asks.
        problem: Why the page is older than the folder; empty if it is not.
    """

    script: str
    version: str
    every_seconds: float
    problem: str = ""


def render(facts: Mapping[str, Any], figures: Figures, notes: Sequence[str] = (), live: Live | None = None) -> str:
    """Fill the page's template.

    Args:
        facts: What `find` worked out.
        figures: The figures.
        notes: Sentences on what could not be drawn.
        live: How a served page stays fresh; None for a page that is a file.

    Returns:
        The page. A file bears a policy that forbids it to load or run anything; a served page gets one as a header.
    """
    colours = {row["arm"]: colour_of(index) for index, row in enumerate(facts["arms"])}
    return _filled("report", live, facts=facts, figures=figures, notes=list(notes), colours=colours)


def render_problem(name: str, live: Live) -> str:
    """Fill a page for a folder that has not been readable yet.

    Args:
        name: The folder's name.
        live: What is wrong with it, and how the page stays fresh.

    Returns:
        The page.
    """
    return _filled("problem", live, facts={"name": name})


def _filled(template: str, live: Live | None, **told: Any) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("crossover.evidence", "page"),
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
        "points": points_told,
        "drawn": Markup,
        "inside": inside,
    }
    script = Markup(live.script) if live else ""
    return environment.get_template(f"{template}.html.j2").render(live=live, script=script, **told)


def inside(text: str) -> str:
    """Give text as a link that bears the text itself, so that a page alone has the numbers behind its figures."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(text.encode()).decode("ascii")
