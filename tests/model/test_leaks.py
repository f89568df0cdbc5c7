"""Nothing that a state may not know reaches it, and all that it may know does: on the real model, in float64."""

import numpy as np
import pytest
import torch

import tiny
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block, lay_out
from crossover.objectives.masked import Masked
from crossover.records import Pattern
from crossover.streams import stream

T = 8
OBJECTIVES = {
    "autoregressive": Autoregressive(),
    "orders": Autoregressive(orders=3),
    "masked": Masked(),
    "masked bernoulli": Masked(count="bernoulli"),
    "masked suffix": Masked(suffix_share=1.0),
    "masked causal": Masked(attention="causal"),
    "block 2": Block(2),
    "block 4": Block(4),
    "block 2 causal": Block(2, clean="causal"),
    "block 4 causal": Block(4, clean="causal"),
    "block 4 causal with next-token loss": Block(4, clean="causal", autoregressive_weight=0.5),
}
# Objectives whose state i predicts token i + 1, so that a read's position names its target.
IN_ORDER = [name for name in OBJECTIVES if name != "orders"]


def moved(states: torch.Tensor) -> np.ndarray:
    """Which states of each row differ from row 0's."""
    return ((states - states[:1]).abs().amax(-1) > 1e-9).numpy()


def reach(mask: np.ndarray, layers: int) -> np.ndarray:
    """Which input reaches which state through that many layers of attention."""
    found = np.eye(len(mask), dtype=bool)
    for _ in range(layers):
        found = (mask.astype(int) @ found.astype(int)) > 0
    return found


# Orders are refused where documents are kept apart.
CASES = [(name, separate) for name in OBJECTIVES for separate in (False, True) if name != "orders" or not separate]


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize(("name", "separate"), CASES)
def test_a_state_moves_with_exactly_the_inputs_that_its_pattern_shows(name, family, separate) -> None:
    words = tiny.vocabulary(9, separate=separate)
    tokens = stream(0, "text").integers(0, 8, (1, T))
    tokens[0, 2] = words.eos_id
    example = OBJECTIVES[name].corrupt(tokens, stream(3, "mask"), words)
    inputs = example.inputs_BN.shape[1]
    documents = None if example.documents_BN is None else example.documents_BN[0]
    mask = tiny.allowed(example.pattern, inputs, documents)
    rows = np.repeat(example.inputs_BN, inputs + 1, 0)
    rows[np.arange(1, inputs + 1), np.arange(inputs)] += 1  # another id; row 0 stays as it is
    rows %= words.size
    model = tiny.model(words, T, family).double()
    numbers = None if documents is None else torch.from_numpy(np.repeat(documents[None], inputs + 1, 0))
    with torch.no_grad():
        plan = model.plan(example.pattern, inputs, numbers)
        states = model.states(tiny.tensor(rows), tiny.tensor(example.positions_BN[:1]), plan)
    found = moved(states)[1:].T  # [state, perturbed input]
    assert np.array_equal(found, reach(mask, 2))


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("name", IN_ORDER)
def test_a_read_state_knows_neither_its_target_nor_what_is_hidden_with_it(name, family, separate) -> None:
    """Change each token of the text, also from or into the end of a document, and read what the states say."""
    objective, words = OBJECTIVES[name], tiny.vocabulary(9, separate=separate)
    text = stream(1, "text").integers(0, 8, T)
    text[4] = words.eos_id
    model = tiny.model(words, T, family).double()

    def read(tokens: np.ndarray):
        example = objective.corrupt(tokens[None], stream(5, "mask"), words)
        index = tiny.reads(example)[example.weights_R > 0]
        return tiny.states(model, example)[index].numpy(), example.positions_BN.ravel()[index], example, index

    before, target, example, index = read(text)
    hidden = hidden_from(example, index, target)
    for token in range(T):
        for other in (words.eos_id, (int(text[token]) + 1) % 8):
            if other == text[token]:
                continue
            changed = text.copy()
            changed[token] = other
            after, again, _, _ = read(changed)
            assert np.array_equal(again, target)
            moves = np.abs(after - before).max(1) > 1e-9
            assert not (moves & hidden[:, token]).any(), f"token {token} leaks into the states of {target[moves]}"
            if not separate:
                assert moves[~hidden[:, token]].all(), f"token {token} is not seen where it may be"


def hidden_from(example, index: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Which tokens each read state may not know, told from what the objective means."""
    pattern, words = example.pattern, tiny.vocabulary(9)
    token = np.arange(T)
    hidden = np.zeros((len(index), T), bool)
    for row, (place, mine) in enumerate(zip(index, target, strict=True)):
        if pattern.kind == "full":
            hidden[row] = example.inputs_BN[0, 1:] == words.mask_id
        elif pattern.kind == "causal":
            hidden[row] = (token >= mine) | (np.append(example.inputs_BN[0, 1:], -1)[:T] == words.mask_id)
        elif place < pattern.clean:
            hidden[row] = token >= mine
        else:
            block = (place - pattern.clean) // (pattern.block + 1)
            first = pattern.clean + block * (pattern.block + 1)
            copy = example.inputs_BN[0, first + 1 : first + 1 + pattern.block]
            hidden[row] = token >= (block + 1) * pattern.block
            hidden[row, block * pattern.block : (block + 1) * pattern.block] = copy == words.mask_id
    return hidden


@pytest.mark.parametrize("block", [2, 4])
@pytest.mark.parametrize("clean", ["block", "causal"])
def test_what_follows_a_block_has_no_say_in_it(block, clean) -> None:
    """The first blocks of a long window are scored as the same blocks of a shorter one."""
    words = tiny.vocabulary(9)
    model = tiny.model(words, 3 * block).double()
    tokens = stream(2, "text").integers(0, 9, (1, 3 * block))
    hidden = np.ones_like(tokens, dtype=bool)
    kind = {"block": "block_causal"}.get(clean, clean)
    spoken = []
    for context in (2 * block, 3 * block):
        length = context - block
        layout = lay_out(tokens[:, :context], hidden[:, :context], block, length, words)
        plan = model.plan(Pattern("two_stream", block, length, kind), layout.inputs_BN.shape[1])
        with torch.no_grad():
            states = model.states(tiny.tensor(layout.inputs_BN), tiny.tensor(layout.positions_N[None]), plan)
        spoken.append(states[0, layout.read_T[: 2 * block]])
    torch.testing.assert_close(spoken[0], spoken[1], rtol=0, atol=1e-10)
