"""One step is one step: the same text, kinds and masks however it is cut into micro-batches, whatever the objective."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from crossover.data.loader import Loader
from crossover.objectives.mixing import Dealer, micro_batches
from crossover.records import Example, Mix
from crossover.registry import component_of
from crossover.streams import stream
from crossover.training.step import Stepper

T, SLICES, WINDOWS = 8, 4, 3
STEPS = range(6)
KINDS = ("autoregressive", "masked", "block(4)", "block(2, clean=causal)")
MIXES = [
    Mix((("autoregressive", 0.25), ("block(4)", 0.75))),
    Mix((("masked", 1.0),)),
    Mix((("autoregressive", 0.4), ("masked", 0.35), ("block(2, clean=causal)", 0.25))),
]


def stepper(accumulation: int, seed: int = 0) -> Stepper:
    """A step of 4 slices in 1, 2 or 4 micro-batches; without an optimizer, gradients stay where they are."""
    words = tiny.vocabulary(9)
    return Stepper(
        model=(model := tiny.model(words, T, seed=seed)),
        forward=model,
        objectives={name: component_of("objective", name) for name in KINDS},
        loader=Loader(
            stream(0, "text").integers(0, 9, 400).astype(np.uint16),
            context=T,
            batch_tokens=SLICES * WINDOWS * T,
            slice_tokens=WINDOWS * T,
            seed=seed,
        ),
        vocabulary=words,
        optimizers=(),
        seed=seed,
        micro_batch_slices=SLICES // accumulation,
        clip_norm=1e9,
        precision="float32",
    )


def text_of(example: Example, windows: int) -> np.ndarray:
    """Recover the data tokens that an example was made of."""
    tokens = np.full((windows, T + 1), -1)
    rows = np.arange(windows)[:, None]
    tokens[rows, example.positions_BN] = example.inputs_BN
    reads = tiny.reads(example)[example.weights_R > 0]
    row, place = np.divmod(reads, example.inputs_BN.shape[1])
    tokens[row, example.positions_BN[row, place] + 1] = example.targets_R[example.weights_R > 0]
    return tokens[:, 1:]


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).astype("<i8").tobytes()).hexdigest()


def record(mix: Mix, accumulation: int) -> list[dict[int, tuple[str, str, str]]]:
    """Per step and slice: its kind, the hash of its text and the hash of what is hidden in it."""
    machine, dealer, rows = stepper(accumulation), Dealer({}), []
    for step in STEPS:
        dealer, kinds = dealer.deal(mix, SLICES)
        slices = {}
        for kind, members in micro_batches(kinds, machine.micro_batch_slices):
            example = machine.example(step, kind, members)
            text = text_of(example, WINDOWS * len(members))
            hidden = example.inputs_BN == machine.vocabulary.mask_id
            for order, member in enumerate(members):
                part = slice(order * WINDOWS, (order + 1) * WINDOWS)
                slices[member] = (kind, digest(text[part]), digest(hidden[part]))
        rows.append(slices)
    return rows


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.describe())
def test_text_kinds_and_masks_are_the_same_over_1_2_and_4_accumulation_steps(mix) -> None:
    one, two, four = (record(mix, accumulation) for accumulation in (1, 2, 4))
    assert one == two == four
    assert all(sorted(row) == list(range(SLICES)) for row in one)
    seen = [entry for row in one for entry in row.values()]
    assert len({text for _, text, _ in seen}) == len(seen), "every slice has its own text"
    assert {kind for kind, _, _ in seen} == set(dict(mix.shares))


def test_text_is_the_same_for_every_objective_and_is_the_loaders() -> None:
    machine = stepper(1)
    for step in STEPS:
        for index in range(SLICES):
            texts = [text_of(machine.example(step, kind, (index,)), WINDOWS) for kind in KINDS]
            assert all(np.array_equal(text, machine.loader.batch(step, index)) for text in texts)


def test_masks_follow_the_seed_the_step_and_the_slice() -> None:
    machine, other = stepper(1), stepper(1)
    object.__setattr__(other, "seed", 1)
    hashes = {digest(machine.example(step, "masked", (index,)).inputs_BN) for step in STEPS for index in range(SLICES)}
    assert len(hashes) == len(STEPS) * SLICES
    assert digest(other.example(0, "masked", (0,)).inputs_BN) not in hashes


@pytest.mark.parametrize("mix", MIXES, ids=lambda mix: mix.describe())
def test_loss_and_gradient_of_a_step_are_equal_within_rounding(mix) -> None:
    kinds = Dealer({}).deal(mix, SLICES)[1]
    outcomes = []
    for accumulation in (1, 2, 4):
        machine = stepper(accumulation)
        result = machine.run(3, kinds, 1.0)
        gradient = torch.cat([parameter.grad.flatten() for parameter in machine.model.parameters()])
        outcomes.append((float(result.loss), {k: float(v) for k, v in result.losses.items()}, gradient))
        assert float(result.gradient_norm) == pytest.approx(float(gradient.norm()), rel=1e-4)
    (loss, parts, gradient), *others = outcomes
    for other_loss, other_parts, other_gradient in others:
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert other_parts == pytest.approx(parts, rel=1e-6)
        assert float((other_gradient - gradient).norm() / gradient.norm()) < 1e-5
    share = {kind: kinds.count(kind) / SLICES for kind in set(kinds)}
    assert loss == pytest.approx(sum(share[kind] * part for kind, part in parts.items()), rel=1e-5)


def test_a_step_that_is_not_finite_is_said_to_be_so() -> None:
    machine = stepper(1)
    with torch.no_grad():
        next(machine.model.parameters()).fill_(float("nan"))
    assert not bool(replace(machine).run(0, ("masked",) * SLICES, 1.0).finite)
