"""Where each file of a stranger lies among others, and what the program does with it.

`of_...` lays a folder out and gives the file's place and its valid contents; `read_...` reads the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from crossover.errors import CrossoverError, DataError, RecipeError
from fuzz import seeds

Laid = tuple[Path, list[bytes]]
# Files of prepared text and of a model folder, and how they are damaged.
PREPARED = {"manifest.json": "json", "train.bin": "bytes", "dev_offsets.npy": "bytes", "dev_names.json": "json",
            "rarity.npy": "bytes", "tokenizer/crossover_tokenizer.json": "json"}  # fmt: skip
SOURCE = {"config.json": "json", "tokenizer_config.json": "json", "tokenizer.json": "json",
          "model-1.safetensors": "safetensors", "model.safetensors.index.json": "json"}  # fmt: skip
MODEL = {"config.json": "json", "model.safetensors": "safetensors", "crossover_tokenizer.json": "json"}


def of_recipe(folder: Path) -> Laid:
    """A recipe beside one that it may extend."""
    (folder / "base.yaml").write_text("model: {preset: 1m}\n", "utf-8")
    extending = {"extends": "base.yaml", "model": {"width": 64}, "budget": {"flops": 2e12}, "controller": "online"}
    anchored = b"data: &d {context: 64}\nmodel: {preset: 1m}\ntraining: &t {batch_tokens: 1024}\n"
    return folder / "recipe.yaml", [*seeds.written_twice(seeds.RECIPE), *seeds.written_twice(extending), anchored]


def read_recipe(folder: Path) -> object:
    """Resolve it, and write the resolved one."""
    from crossover.recipe import load, to_tree, to_yaml
    from crossover.trees import fingerprint

    recipe = load(folder / "recipe.yaml")
    return to_yaml(recipe).encode("utf-8"), fingerprint(to_tree(recipe))


def of_override(folder: Path) -> Laid:
    """A setting of the command line."""
    return folder / "override", [text.encode() for text in seeds.OVERRIDES]


def read_override(folder: Path) -> object:
    """Lay it over a recipe."""
    from crossover.recipe import resolve
    from crossover.trees import apply

    tree: dict[str, Any] = {"data": {"context": 32}, "budget": {"tokens": 1e6}}
    text = (folder / "override").read_bytes().decode("utf-8", "surrogateescape")
    try:
        apply(tree, text)
        return resolve(tree, origin="override")
    except RecipeError as error:
        # The command line has no file; a message is one if it says anything.
        raise RecipeError(f"override: {error}") if str(error).strip() else error from None


def of_study(folder: Path) -> Laid:
    """A study file beside its recipe."""
    (folder / "base.yaml").write_text("data: {context: 32}\ntraining: {batch_tokens: 512}\n", "utf-8")
    return folder / "study.yaml", seeds.written_twice(seeds.STUDY)


def read_study(folder: Path) -> object:
    """Check every arm of it."""
    from crossover.evidence.definition import read_study as read

    return read(folder / "study.yaml").definition(1)


@contextmanager
def _around(folder: Path, name: str) -> Iterator[None]:
    """Name the run in the errors of what is drawn from its records."""
    try:
        yield
    except CrossoverError as error:
        raise type(error)(f"{folder}/{name}: {error}") from None


def of_run(folder: Path, name: str) -> Laid:
    """One file of a finished run."""
    run = seeds.run_folder(folder / "run")
    return run / name, [(run / name).read_bytes()]


def read_run(folder: Path) -> object:
    """Read the run, its curves, its changes of gear, and where it stands."""
    from crossover.evidence import curves, display, view
    from crossover.evidence.checked import read_progress
    from crossover.evidence.record import read_run as read

    run = folder / "run"
    record = read(run)
    norms = view.read_view(run).norms
    shown = read_progress(run)
    lines = [display.mix_text(shown.get("mix")), display.duration(shown.get("seconds_left")), display.line_of(shown)]
    with _around(folder, "run"):
        procedure, _ = curves.headline_mode([record])
    drawn = [curves.curve("arm", record, name) for name in (procedure, *curves.procedures_of([record]))]
    return lines, drawn, view.handovers(record), view.turning_points(record.decisions), norms


def of_replay(folder: Path, name: str) -> Laid:
    """One file of a run whose controller was asked."""
    run = seeds.recorded_run(folder / "run")
    return run / name, [(run / name).read_bytes()]


def read_replay(folder: Path) -> object:
    """Fold the run's signals again."""
    from crossover.evidence.replay import lines_of, replay

    return lines_of(replay(folder / "run"))


def of_study_folder(folder: Path) -> Laid:
    """The file by which a study's folder is known."""
    from evidence.synthetic import write_study

    shutil.rmtree(folder / "pair", ignore_errors=True)
    write_study(folder / "pair", {"ar": {}}, seeds=(0,))
    path = folder / "pair" / "study.yaml"
    return path, [path.read_bytes()]


def read_study_folder(folder: Path) -> object:
    """Read the study for its report."""
    from crossover.evidence.view import read_view, run_folders

    view = read_view(folder / "pair")
    return view, run_folders(folder / "pair")


def of_checkpoint(folder: Path, name: str) -> Laid:
    """One file of a checkpoint; the sums are made to agree, as one who means harm would make them."""
    import torch

    from crossover.training.checkpoint import write_folder
    from crossover.training.state import State

    state = State(step=3, data_tokens=300, flops=1e9, mix={"masked": 1.0}, exposures={"masked": 300})
    tree = {"state": state.to_tree(), "bad_steps": 0, "recipe": "x"}
    final = folder / "checkpoints" / "step-000000003"
    write_folder(final, {"model": {"a.weight": torch.ones(3, 2), "b": torch.arange(4)}}, tree)
    return final / name, [(final / name).read_bytes()]


def read_checkpoint(folder: Path) -> object:
    """Take the checkpoint up, with its sums as they are and made to agree."""
    from crossover.folders import write_sums
    from crossover.scoring.checkpoints import kept_checkpoints
    from crossover.training.checkpoint import load, load_state
    from crossover.training.state import State

    final = folder / "checkpoints" / "step-000000003"
    told: list[Any] = [_refusal(lambda: load_state(final))]
    sums = (final / "checksums.json").read_bytes()
    (final / "checksums.json").unlink()
    write_sums(final)
    try:
        _, tree = load(final, ("model",))
        with _around(final, "state.json"):
            if isinstance(tree.get("state"), dict):
                told.append(State.from_tree(tree["state"]).mix)
            return told, kept_checkpoints(folder)
    finally:
        (final / "checksums.json").write_bytes(sums)


def _refusal(call: Any) -> str:
    try:
        call()
    except CrossoverError as error:
        return str(error)
    return ""


@cache
def _prepared(folder: Path) -> Path:
    from crossover.data.prepare import prepare
    from crossover.sections import DataRecipe

    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps({"text": f"document {i} " + "word " * (5 + i % 7)}) + "\n" for i in range(60))
    (folder / "text.jsonl").write_text(text, "utf-8")
    recipe = DataRecipe(source=str(folder / "text.jsonl"), tokenizer="bytes", context=8)
    return prepare(recipe, seed=0, cache=folder / "cache").folder


def of_shards(folder: Path, name: str) -> Laid:
    """One file of prepared text."""
    shutil.rmtree(folder / "text", ignore_errors=True)
    shutil.copytree(_prepared(folder.parent / "prepared"), folder / "text")
    path = folder / "text" / name
    return path, [path.read_bytes()]


def read_shards(folder: Path) -> object:
    """Open the text, its manifest vouching for what is there, and read all of it."""
    from crossover.data.shards import PreparedText, combined_hash, sha256_file

    place = folder / "text"
    _refusal(lambda: PreparedText.open(place))
    before = (place / "manifest.json").read_bytes()
    try:
        manifest = json.loads(before)
        for name, facts in manifest["files"].items():
            facts |= {"bytes": (place / name).stat().st_size, "sha256": sha256_file(place / name)}
        manifest["data_hash"] = combined_hash(manifest["files"])
        (place / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        pass  # It is the manifest that is damaged.
    try:
        text = PreparedText.open(place)
        tokens = [np.asarray(text.train_tokens(with_control=flag)).sum() for flag in (True, False)]
        return tokens, text.documents("dev"), text.documents("test"), text.control_documents()
    finally:
        (place / "manifest.json").write_bytes(before)


def read_corpus(folder: Path) -> object:
    """Read all documents, as `prepare` would."""
    from crossover.data.corpus import Files

    corpus = Files(str(next(path for path in folder.iterdir() if path.name.startswith("text."))))
    corpus.signature()
    return sum(len(document.text.encode()) for document in corpus.documents(200))


def of_tokenizer(folder: Path) -> Laid:
    """A tokenizer that exists already."""
    return folder / "tokenizer.json", seeds.tokenizers()


def read_tokenizer(folder: Path) -> object:
    """Take it as a recipe's tokenizer, and cut a text by it."""
    from crossover.data.tokenizer import TokenizerFile

    found = TokenizerFile(str(folder / "tokenizer.json")).fit(())
    try:
        ids = found.encode("the first text, é 漢  and <|mask|>")
        found.decode(ids)
        return found.document_bytes(ids)
    except DataError:
        return (
            None  # It knows too few characters, or its pieces are no exact bytes: facts about it, not about the file.
        )


def of_model(folder: Path, name: str) -> Laid:
    """One file of a model folder."""
    from crossover.data.tokenizer import Bytes
    from crossover.hub.export import export
    from crossover.model.backbone import build
    from crossover.model.shapes import Shape

    tokenizer = Bytes().fit([])
    words = tokenizer.vocabulary
    shape = Shape("llama", words.size, 8, 1, heads=1, kv_heads=1, head_width=8, mlp_width=8, tied=True)
    made = build(shape, words, context=8, seed=0)
    weights = dict(made.inner.named_parameters())
    export(folder / "model", made.inner.config, weights, tokenizer, {"modes": ["ar"], "best_mode": "ar"})
    path = folder / "model" / name
    return path, [path.read_bytes()]


def read_model(folder: Path) -> object:
    """Open the model."""
    from crossover.hub.adopt import open_model
    from crossover.scoring.checkpoints import modes_of

    return open_model(folder / "model"), modes_of(folder / "model", "all")


def of_source(folder: Path, name: str) -> Laid:
    """One file of a folder that another program wrote, its weights behind an index."""
    path, _ = of_model(folder, "config.json")
    config = json.loads(path.read_text("utf-8"))
    del config["crossover"]
    path.write_text(json.dumps(config), "utf-8")
    place = path.parent
    (place / "crossover_tokenizer.json").unlink()
    (place / "model.safetensors").rename(place / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return place / name, [(place / name).read_bytes()]


def read_source(folder: Path) -> object:
    """Read what `adopt` would begin from."""
    from crossover.hub.sources import read_source as read

    return read(folder / "model", None)


def of_llama2c(folder: Path) -> Laid:
    """A model of llama2.c."""
    return folder / "model.bin", [seeds.llama2c()]


def read_llama2c(folder: Path) -> object:
    """Read the model."""
    from crossover.hub.adopt import read_llama2c as read

    return read(folder / "model.bin")
