"""What block diffusion is at its two ends, in between, and on average: against models and enumeration."""

import itertools

import numpy as np
import pytest
import torch

import tiny
from crossover.objectives.autoregressive import Autoregressive
from crossover.objectives.block import Block
from crossover.objectives.masked import Masked
from crossover.objectives.schedules import Clipped, Cosine, Linear, LogLinear, Polynomial
from crossover.records import Example
from crossover.streams import stream


def same(first: Example, second: Example) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in Example.__dataclass_fields__]
    return all(
        np.array_equal(one, two) if isinstance(one, np.ndarray) and isinstance(two, np.ndarray) else one == two
        for one, two in pairs
    )


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("options", [{}, {"count": "bernoulli"}, {"count": "bernoulli", "noise": Cosine(), "eps": 0.0}])
def test_one_block_is_masked_diffusion_and_blocks_of_one_are_autoregressive(options, separate) -> None:
    words = tiny.vocabulary(9, separate=separate)
    tokens = stream(0, "text").integers(0, 9, (6, 8))

    def example(objective) -> Example:
        return objective.corrupt(tokens, stream(1, "mask"), words)

    assert same(example(Block(8, **options)), example(Masked(**options)))
    assert same(example(Block(1, **options)), example(Autoregressive()))
    assert Block(8, **options).workload(8) == Masked(**options).workload(8)
    assert Block(1, **options).workload(8) == Autoregressive().workload(8)
    assert Block(8).modes(8) == Masked().modes(8) and Block(1).modes(8) == ("ar",)
    assert not same(example(Block(4, **options)), example(Masked(**options)))


def direct(model, example: Example, tokens: np.ndarray, block: int, causal: bool) -> dict[tuple[int, int], float]:
    """Nats of each hidden token, from a plain sequence per block: the text before it, then its noisy copy."""
    words, clean = model.vocabulary, example.pattern.clean
    found = {}
    for row, window in enumerate(tokens):
        whole = np.concatenate([[words.bos_id], window])
        for number in range(len(window) // block):
            first = number * block
            start = clean + number * (block + 1)
            copy = example.inputs_BN[row, start : start + block + 1]
            sequence = np.concatenate([whole[:first], copy])
            size = len(sequence)
            group = np.arange(size) // block
            group[first:] = number  # the copy, its S + 1 inputs, sees all of itself
            seen = np.tri(size, dtype=bool) if causal else group[:, None] >= group[None, :]
            seen[first:] = True
            if words.separate_documents:
                document = np.cumsum(sequence == words.eos_id)
                seen &= document[:, None] == document[None, :]
            with torch.no_grad():
                states = model.states(tiny.tensor(sequence[None]), torch.arange(size)[None], tiny.dense_plan(seen))
                nats = -torch.log_softmax(model.logits(states[0]), -1).double().numpy()
            for inside in range(block):
                if copy[inside + 1] == words.mask_id:
                    found[row, first + inside] = nats[first + inside, window[first + inside]]
    return found


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize("objective", [Block(2), Block(4), Block(2, clean="causal"), Block(4, clean="causal")])
def test_one_pass_over_two_streams_is_the_computation_block_by_block(objective, family, separate) -> None:
    words = tiny.vocabulary(9, separate=separate)
    model = tiny.model(words, 12, family)
    tokens = stream(2, "text").integers(0, 9, (3, 12))
    example = objective.corrupt(tokens, stream(2, "mask"), words)
    wanted = direct(model, example, tokens, objective.size, objective.clean == "causal")
    live = example.weights_R > 0
    rows, places = np.divmod(example.reads_R[live], example.inputs_BN.shape[1])
    found = dict(
        zip(zip(rows, example.positions_BN[rows, places], strict=True), tiny.nats(model, example)[live], strict=True)
    )
    assert found.keys() == wanted.keys()
    assert max(abs(found[key] - wanted[key]) for key in wanted) < 1e-5


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "documents"])
def test_a_causal_clean_stream_gives_the_next_token_loss_for_free(separate) -> None:
    words = tiny.vocabulary(9, separate=separate)
    model, tokens = tiny.model(words, 8), stream(3, "text").integers(0, 9, (3, 8))
    ar = float(tiny.loss(model, Autoregressive().corrupt(tokens, stream(0, "m"), words)).detach())
    alone, both = (
        float(
            tiny.loss(
                model, Block(4, clean="causal", autoregressive_weight=weight).corrupt(tokens, rng, words)
            ).detach()
        )
        for weight, rng in ((0.0, stream(4, "m")), (0.7, stream(4, "m")))
    )
    assert both == pytest.approx(alone + 0.7 * ar, rel=1e-5)


T = 4
VARIANTS = [
    Masked(),
    *(Masked("bernoulli", noise, eps=0.0) for noise in (Linear(), Cosine(), LogLinear(0.0), Polynomial(2.0))),
    Masked("bernoulli", Clipped(0.0, 1.0), eps=0.0),
    Block(2),
    Block(2, clean="causal"),
    Block(2, "bernoulli", Polynomial(2.0), eps=0.0),
]


def table(objective, model, tokens: np.ndarray) -> dict[tuple[int, tuple[bool, ...]], float]:
    """Nats of each token under each set of hidden tokens, from the model itself."""
    nats = {}
    size = T if isinstance(objective, Masked) else objective.size
    for hidden in itertools.product([False, True], repeat=size):
        example = hide(objective, model.vocabulary, tokens, hidden)
        values = tiny.nats(model, example)
        for read, value in zip(example.reads_R, values, strict=True):
            nats[int(example.positions_BN.ravel()[read]), hidden] = value
    return nats


def hide(objective, words, tokens: np.ndarray, hidden: tuple[bool, ...]) -> Example:
    """An example of the objective whose every group shows the same tokens, all its tokens read."""
    example = objective.corrupt(tokens[None], stream(0, "any"), words)
    inputs, size, clean = example.inputs_BN.copy(), len(hidden), example.pattern.clean
    whole = np.concatenate([[words.bos_id], tokens])
    read = []
    for block in range(T // size):
        first = clean + block * (size + 1)
        shown = whole[block * size : (block + 1) * size + 1]
        inputs[0, first : first + size + 1] = np.where([False, *hidden], words.mask_id, shown)
        read += [first + inside for inside in range(size)]
    ones = np.ones(T, np.float32)
    return Example(inputs, example.positions_BN, example.pattern, np.array(read), tokens, ones, T)


@pytest.mark.parametrize("objective", VARIANTS, ids=repr)
def test_the_bound_is_unbiased_against_full_enumeration(objective) -> None:
    words = tiny.vocabulary(3)
    model, tokens = tiny.model(words, T, seed=3), np.array([1, 0, 2, 1])
    nats = table(objective, model, tokens)
    size = T if isinstance(objective, Masked) else objective.size
    expected = 0.0
    for hidden in itertools.product([False, True], repeat=size):
        count = sum(hidden)
        if count:
            chance = 1 / size / len(list(itertools.combinations(range(size), count)))
            tokens_hidden = [b * size + i for b in range(T // size) for i in range(size) if hidden[i]]
            expected += chance * size / count * sum(nats[token, hidden] for token in tokens_hidden) / T
    assert objective.is_bound
    draws = np.array([drawn(objective, words, tokens, nats, index) for index in range(800)])
    error = draws.std(ddof=1) / len(draws) ** 0.5
    assert abs(draws.mean() - expected) < 4 * error
    assert error < 0.02 * expected


def drawn(objective, words, tokens: np.ndarray, nats, index: int) -> float:
    """The loss of 8 windows as `corrupt` would have it, looked up in the table."""
    example = objective.corrupt(np.repeat(tokens[None], 8, 0), stream(9, "draw", index), words)
    size = T if isinstance(objective, Masked) else objective.size
    width, total = example.inputs_BN.shape[1], 0.0
    for read, weight in zip(example.reads_R, example.weights_R, strict=True):
        if weight > 0:
            row, place = divmod(int(read), width)
            token = int(example.positions_BN[row, place])
            first = example.pattern.clean + token // size * (size + 1) + 1
            hidden = tuple(bool(item) for item in example.inputs_BN[row, first : first + size] == words.mask_id)
            total += float(weight) * nats[token, hidden]
    return total / example.data_tokens


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe"])
@pytest.mark.parametrize(
    "objective",
    [
        Autoregressive(),
        Autoregressive(input_mask_rate=0.5, masked_input_weight=0.4),
        Autoregressive(orders=3),
        Masked(),
        Masked("bernoulli"),
        Masked(attention="causal"),
        Block(2),
        Block(4, clean="causal"),
        Block(4, clean="causal", autoregressive_weight=0.5),
    ],
    ids=repr,
)
def test_gradients_of_every_objective_reach_every_shared_weight(objective, family) -> None:
    words = tiny.vocabulary(9)
    model = tiny.model(words, 8, family, tied=False)
    tiny.loss(model, objective.corrupt(stream(5, "t").integers(0, 9, (4, 8)), stream(5, "m"), words)).backward()
    for name, parameter in model.inner.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if parameter.dim() == 2 and "embed" not in name and "lm_head" not in name:
            assert (parameter.grad.abs().amax(1) > 0).all(), f"{name}: a row without a gradient"
        assert float(parameter.grad.norm()) > 1e-7, name
    head = model.inner.lm_head.weight.grad
    assert (head[: words.predictable].norm(dim=1) > 0).all()
    assert (head[words.predictable :] == 0).all(), "the mask and padding are never predicted"
