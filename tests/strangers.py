"""Models as others leave them: transformers' own folders, and llama2.c files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config, Qwen3MoeConfig

SPECIALS = ("<s>", "</s>")
SHAPES: dict[str, Any] = {
    "llama": LlamaConfig,
    "qwen3": Qwen3Config,
    "qwen3_moe": Qwen3MoeConfig,
}


def tokenizer_file(path: Path, specials: tuple[str, ...] = SPECIALS) -> tokenizers.Tokenizer:
    """Write a byte-level tokenizer with special pieces of its own, and a post-processor, as strangers have."""
    alphabet = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    engine = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    if specials:
        engine.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{specials[0]} $A", special_tokens=[(specials[0], engine.token_to_id(specials[0]))]
        )
    engine.save(str(path))
    return engine


def folder(path: Path, family: str = "llama", *, tied: bool = True, rows: int = 262, **changes: Any) -> PreTrainedModel:
    """Write a random model and its tokenizer as transformers writes them."""
    path.mkdir(parents=True)
    extra = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
    config = SHAPES[family](
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-6, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5}, bos_token_id=256, eos_token_id=257,
        **(extra if family == "qwen3_moe" else {}),
    )  # fmt: skip
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(15.0)
    model.save_pretrained(path)
    tokenizer_file(path / "tokenizer.json")
    if changes:
        change(path, **changes)
    return model.eval()


def change(path: Path, **changes: Any) -> None:
    """Change config.json."""
    tree = json.loads((path / "config.json").read_text("utf-8"))
    (path / "config.json").write_text(json.dumps({**tree, **changes}), "utf-8")


def llama2c_tokenizer(path: Path, pieces: list[tuple[float, str]]) -> Path:
    """Write llama2.c's tokenizer file: special pieces, a piece for each byte, then these."""
    scored = [(0.0, "<unk>"), (0.0, "\n<s>\n"), (0.0, "\n</s>\n")]
    scored += [(0.0, f"<0x{byte:02X}>") for byte in range(256)] + pieces
    raw = struct.pack("<i", 12)
    for score, piece in scored:
        raw += struct.pack("<fi", score, len(piece.encode())) + piece.encode()
    path.write_bytes(raw)
    return path
