"""The command `sample`: text from a finished model, what it cost, and what a judge thinks of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crossover.cli.options import RunPath, SettingsCommand, app, model_folder, say
from crossover.errors import RecipeError

if TYPE_CHECKING:
    from crossover.sampling.command import Sample
    from crossover.sampling.record import Generation

Prompt = Annotated[str, typer.Option(help="Text to go on from.", show_default=False)]
Prompts = Annotated[
    Path | None,
    typer.Option(help='A file of prompts: a line each, or .jsonl rows {"prompt": ...}.', show_default=False),
]
Infill = Annotated[
    str | None, typer.Option(help='Text with holes to fill in, such as "a <mask:8> b".', show_default=False)
]
Tokens = Annotated[
    int | None, typer.Option(help="Tokens to draw; by default 64, or what the window holds.", show_default=False)
]
Mode = Annotated[str, typer.Option(help="ar, masked, block or block(16); best is the mode that scored best on dev.")]
Unmasking = Annotated[
    str | None,
    typer.Option(
        help="How masked and block modes reveal tokens: first_hitting (default), left_to_right, ancestral(64), "
        "confidence(2), margin(2), entropy(0.5), remasking(64, 0.1).",
        show_default=False,
    ),
]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")]
TopP = Annotated[float, typer.Option(help="Draw from the fewest tokens that have this probability; 1 is off.")]
MinP = Annotated[float, typer.Option(help="Drop tokens below this share of the likeliest one's; 0 is off.")]
Guidance = Annotated[float, typer.Option(help="Weight of classifier-free guidance (mode masked); 0 is off.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends a text; may be given several times.", show_default=False)
]
Samples = Annotated[int, typer.Option(help="Texts per prompt.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same text.")]
Batch = Annotated[int, typer.Option(help="Texts that are drawn together; it has no say in what is written.")]
JudgePath = Annotated[
    Path | None,
    typer.Option("--judge", help="A run or model folder that judges the texts: perplexity, with their entropy."),
]
EmbeddingPath = Annotated[
    Path | None, typer.Option("--embedding", help="A Hugging Face model folder, for MAUVE; needs --references.")
]
References = Annotated[Path | None, typer.Option(help="Text that the texts should be like, for MAUVE.")]

Out = Annotated[
    Path | None,
    typer.Option(help="A .json file for texts and prices; reports show those in RUN/samples/.", show_default=False),
]


@app.command("sample", cls=SettingsCommand, short_help="Write text with a trained model, or fill in holes.")
def sample_command(
    run: RunPath,
    prompt: Prompt = "",
    prompts: Prompts = None,
    infill: Infill = None,
    tokens: Tokens = None,
    mode: Mode = "best",
    unmasking: Unmasking = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    guidance: Guidance = 0.0,
    stop: Stop = None,
    samples: Samples = 1,
    seed: Seed = 0,
    batch: Batch = 16,
    judge: JudgePath = None,
    embedding: EmbeddingPath = None,
    references: References = None,
    out: Out = None,
) -> None:
    """Write text with a trained model, fill in holes, and say what it cost."""
    if (judge is None or references is None) and embedding is not None:
        raise RecipeError("MAUVE needs three: --embedding, --references and --judge")
    if references is not None and embedding is None:
        raise RecipeError("references mean something for MAUVE only; add --embedding")
    if out is not None and out.suffix != ".json":
        raise RecipeError(f"--out {out}: expected a file name that ends in .json")
    settings = {"prompt": prompt, "prompts_file": prompts, "infill": infill, "tokens": tokens, "mode": mode}
    settings |= {"unmasking": unmasking, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    settings |= {"guidance": guidance, "stop": tuple(stop or ()), "samples": samples, "seed": seed, "batch": batch}
    folder = model_folder(run)
    judged = None if judge is None else _judgement(model_folder(judge), embedding, references)
    drawn = _sample(folder, settings)
    if out is not None:
        _keep(out, drawn, settings)
    if judged is not None:
        for line in judged([sample.generation for sample in drawn]):
            say(line)


def _keep(out: Path, drawn: Sequence[Sample], settings: dict[str, Any]) -> None:
    """Write texts down with what they cost, for the report and for programs."""
    from crossover.evidence.files import dumps, write_text

    rows = [
        {
            "prompt": sample.prompt, "text": sample.text, "mode": sample.mode,
            "tokens": len(sample.generation.ids), "ended": sample.generation.ended,
            "passes": sample.generation.passes, "flops": sample.generation.flops,
            "tokens_per_second": sample.generation.tokens_per_second,
            **{key: settings[key] for key in ("seed", "temperature", "unmasking", "top_k", "top_p", "min_p")},
        }
        for sample in drawn
    ]  # fmt: skip
    write_text(out, dumps({"samples": rows}, indent=2) + "\n")


def _sample(folder: Path, settings: dict[str, Any]) -> list[Sample]:
    from crossover.sampling.command import sample_folder
    from crossover.sampling.request import Request

    drawn = []
    for sample in sample_folder(folder, Request(**settings), screen=True):
        say(sample.text)
        print(sample.note, file=sys.stderr, flush=True)
        drawn.append(sample)
    return drawn


def _judgement(
    judge: Path, embedding: Path | None, references: Path | None
) -> Callable[[Sequence[Generation]], list[str]]:
    """Open all that a judgement needs, so that what is missing is said before anything is drawn."""
    from crossover.registry import component_of
    from crossover.sampling.judges import open_embedding, open_judge
    from crossover.sampling.quality import quality, quality_lines

    judges, points = open_judge(judge), None if embedding is None else open_embedding(embedding)
    texts: list[str] = []
    if references is not None:
        texts = [document.text for document in component_of("corpus", str(references)).documents(1_000_000)]

    def judged(drawn: Sequence[Generation]) -> list[str]:
        pairs = [(item.ids, "".join(item.pieces)) for item in drawn]
        return quality_lines(quality(pairs, judges, embedding=points, references=texts))

    return judged
