"""Models, tokenizers and numbers of strangers run no code and claim no more memory than they hold."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossover.data.corpus import Files
from crossover.data.shards import _array
from crossover.data.tokenizer import Tokenizer, TokenizerFile
from crossover.errors import DataError
from crossover.folders import write_sums
from traps import TRAP, Trap, refused


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_safetensors_header_that_claims_the_sky_is_refused(here):
    from crossover.training.checkpoint import load as load_checkpoint

    folder = here / "step-000000001"
    folder.mkdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 20], "data_offsets": [0, 1 << 62]}}).encode()
    for content in (struct.pack("<Q", 1 << 60), struct.pack("<Q", len(header)) + header, pickle.dumps(Trap())):
        (folder / "model.safetensors").write_bytes(content)
        (folder / "state.json").write_text("{}")
        (folder / "checksums.json").unlink(missing_ok=True)
        write_sums(folder)
        refused(lambda: load_checkpoint(folder, ["model"]), folder)


def model_folder(here: Path, **changes: Any) -> Path:
    """Write a model folder of ours, its config.json changed."""
    from crossover.data.tokenizer import Bytes
    from crossover.hub.export import export
    from crossover.model.backbone import build
    from crossover.model.shapes import Shape

    tokenizer = Bytes().fit([])
    shape = Shape("llama", tokenizer.vocabulary.size, 8, 1, heads=1, kv_heads=1, head_width=8, mlp_width=8, tied=True)
    made = build(shape, tokenizer.vocabulary, context=8, seed=0)
    facts = {"modes": ["ar"], "best_mode": "ar"}
    export(here / "model", made.inner.config, dict(made.inner.named_parameters()), tokenizer, facts)
    config = here / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), **changes}), "utf-8")
    return here / "model"


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}},
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"vocab_size": 10**12},
    ],
)
def test_a_model_folder_that_asks_for_code_or_for_terabytes_is_refused(here, changes):
    from crossover.hub.adopt import open_model

    folder = model_folder(here, **changes)
    (folder / "evil.py").write_text(TRAP)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(lambda: open_model(folder), folder)


def test_pickled_weights_are_never_read(here):
    from crossover.hub.adopt import open_model, read_llama2c

    folder = model_folder(here)
    for name in ("pytorch_model.bin", "model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Trap()))
    open_model(folder)
    assert not Path("trapped").exists()
    (folder / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    refused(lambda: open_model(folder), folder)
    (folder / "model.safetensors").unlink()
    refused(lambda: open_model(folder), folder)
    refused(lambda: read_llama2c(folder / "model.bin"), "model.bin")


def test_a_judge_that_asks_for_code_is_refused(here):
    from crossover.sampling.judges import _config

    folder = model_folder(here, auto_map={"AutoModel": "evil.Model"})
    refused(lambda: _config(folder), folder, "code of its own")


def test_a_tokenizer_runs_nothing_and_claims_no_sky(here):
    from crossover.data.tokenizer import Bytes

    Bytes().fit([]).save(here / "saved")
    tree = json.loads((here / "saved" / "tokenizer.json").read_text("utf-8"))
    folder = here / "tokenizer"
    folder.mkdir()
    (folder / "evil.py").write_text(TRAP)
    asks = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(asks))
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    assert len(Tokenizer.load(folder).encode("text")) == 4
    assert not Path("trapped").exists()
    tree["added_tokens"].append({**tree["added_tokens"][0], "id": 2**32 - 2, "content": "<far>"})
    tree["model"]["vocab"]["far"] = 2**32 - 3
    for content in (json.dumps(tree).encode(), pickle.dumps(Trap()), b"[" * 100_000, b"\xff" * 100):
        (folder / "tokenizer.json").write_bytes(content)
        refused(lambda: TokenizerFile(str(folder)).fit(()), "tokenizer.json")


def test_prepared_numbers_are_numbers_and_no_pickles(here):
    np.save("objects.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused(lambda: _array(here / "objects.npy", "<i8"), "objects.npy")
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (999999999999999,), }\n"
    (here / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    refused(lambda: _array(here / "huge.npy", "<i8"), "huge.npy")


def test_a_parquet_file_that_claims_the_sky_is_refused(here):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    path = here / "text.parquet"
    parquet.write_table(arrow.table({"text": ["a text"] * 10}), path, compression="none")
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    begin = len(content) - 8 - footer
    for place in range(begin, len(content) - 8, 3):
        # Sizes are variable-length integers: five bytes of ones are more than any file holds.
        path.write_bytes(content[:place] + b"\xff\xff\xff\xff\x0f" + content[place + 5 :])
        try:
            list(Files(str(path)).documents(1000))
        except DataError as error:
            assert "text.parquet" in str(error)
