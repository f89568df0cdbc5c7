"""The tokenizer of stories260K as a tokenizer.json: pieces that are joined by score, raw bytes for the rest."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

SPACE = "▁"


def tokenizer_of(path: Path, *, begin: bool) -> Tokenizer:
    """Build it; `begin` puts BOS before every text, as lm-evaluation-harness asks for with add_bos_token."""
    tree = json.loads(path.read_text("utf-8"))
    pieces = [piece.replace(" ", SPACE) for piece in tree["pieces"]]
    for byte in range(256):
        pieces[3 + byte] = f"<0x{byte:02X}>"
    ids = {piece: number for number, piece in enumerate(pieces)}
    # The pair whose piece has the highest score is joined first; ids behind the bytes fall in score.
    ranked = sorted(range(259, len(pieces)), key=lambda number: -tree["scores"][number])
    merges = [
        (pieces[number][:cut], pieces[number][cut:])
        for number in ranked
        for cut in range(1, len(pieces[number]))
        if pieces[number][:cut] in ids and pieces[number][cut:] in ids
    ]
    engine = Tokenizer(models.BPE(ids, merges, unk_token=pieces[0], fuse_unk=False, byte_fallback=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    parts = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    engine.decoder = decoders.Sequence(parts)
    engine.add_special_tokens([AddedToken(pieces[number], special=True, normalized=False) for number in range(3)])
    if begin:
        first = pieces[1]
        engine.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", pair=f"{first} $A {first}:1 $B:1", special_tokens=[(first, 1)]
        )
    return engine
