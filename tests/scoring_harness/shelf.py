"""A small folder of evaluation sets: two or three items of each, in the format of the real ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SWAG = [
    {
        "ind": 4 + number,
        "activity_label": "Making tea",
        "ctx_a": "[header] How to make tea [title] Boil water.",
        "ctx_b": "the man" if number else "",
        "ctx": "x",
        "endings": ["pours  water [step] in.", "sings.", "eats the cup.", "leaves."],
        "source_id": "wikihow~1",
        "split": "val",
        "split_type": "indomain",
        "label": number,
    }
    for number in range(3)
]
ARC = [
    {
        "id": f"q{number}",
        "question": "What is é?",
        "choices": {"text": ["a letter", "a stone", "a star"], "label": ["A", "B", "C"] if number else ["1", "2", "3"]},
        "answerKey": "C" if number else "2",
    }
    for number in range(2)
]
LAMBADA = [
    {"context": 'She looked at the lake.\n\n"It is" he said,  "a', "continuation": "lake"},
    {"context": "One two", "continuation": "three"},
]
PIQA = [{"goal": "Open a box", "sol1": "lift the lid ", "sol2": "eat it", "label": 0}] * 2
GRANDE = [
    {"sentence": "Ann beat Bea so _ was glad.", "option1": "Ann", "option2": "Bea", "answer": "1"},
    {"sentence": "Ann beat Bea so _ was sad.", "option1": "Ann", "option2": "Bea", "answer": "2"},
]
MMLU = [
    {"question": f" Which {number}? ", "subject": subject, "choices": ["0", "4", "2", "6"], "answer": number % 4}
    for number in range(3)
    for subject in ("anatomy", "abstract_algebra")
]
BLIMP = [
    {
        "sentence_good": f"Cats {word} here.",
        "sentence_bad": f"Cat {word} here.",
        "field": "syntax",
        "linguistics_term": "agreement",
        "UID": uid,
        "one_prefix_prefix": "only some rows have this",
    }
    for uid in ("adjunct_island", "causative")
    for word in ("sleep", "eat")
]
FILES = {
    "hellaswag/hellaswag_val": SWAG,
    "arc/arc_easy_test": ARC,
    "arc/arc_easy_validation": ARC[:1],
    "arc/arc_challenge_test": ARC[1:],
    "arc/arc_challenge_validation": ARC,
    "lambada/lambada_openai_test": LAMBADA,
    "piqa/piqa_validation": PIQA,
    "winogrande/winogrande_xl_validation": GRANDE,
    "mmlu/mmlu_test": MMLU,
    "mmlu/mmlu_val": MMLU[:2],
    "mmlu/mmlu_dev": [{**row, "question": "An example?"} for row in MMLU],
    "blimp/blimp": BLIMP,
}


def fill(folder: Path) -> Path:
    """Write the folder."""
    for stem, rows in FILES.items():
        path = folder / f"{stem}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Separators that JSON may hold as they are must not end a line.
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes(gzip.compress(text.encode("utf-8")))
    return folder


def on_the_hub(path: str, name: str | None) -> dict[str, list[Row]]:
    """Say what the hub's data sets would hold, in their own columns and types."""
    swag = [{**row, "label": str(row["label"])} for row in SWAG]
    subject = [{key: row[key] for key in ("question", "subject", "choices", "answer")} for row in MMLU]
    held = {
        ("Rowan/hellaswag", None): {"train": swag[:1], "validation": swag},
        ("allenai/ai2_arc", "ARC-Easy"): {"train": ARC[:1], "validation": ARC[:1], "test": ARC},
        ("allenai/ai2_arc", "ARC-Challenge"): {"train": ARC[:1], "validation": ARC, "test": ARC[1:]},
        ("EleutherAI/lambada_openai", "default"): {
            "test": [{"text": f"{row['context']} {row['continuation']}"} for row in LAMBADA]
        },
        ("baber/piqa", None): {"train": PIQA[:1], "validation": PIQA},
        ("allenai/winogrande", "winogrande_xl"): {"train": GRANDE[:1], "validation": GRANDE},
        ("cais/mmlu", "anatomy"): {
            "test": [row for row in subject if row["subject"] == "anatomy"],
            "dev": [{**row, "question": "An example?"} for row in subject if row["subject"] == "anatomy"],
        },
        ("nyu-mll/blimp", "causative"): {
            "train": [
                {key: value for key, value in row.items() if "prefix" not in key}
                for row in BLIMP
                if row["UID"] == "causative"
            ]
        },
    }
    return held[path, name]
