"""Rounds of ranks that meet every few updates: the outer optimizer, compression, late ranks, and whole runs."""

import json
import threading

import numpy as np
import pytest

from slm_np.ranks.compression import BLOCK, CODECS
from slm_np.ranks.rounds import OuterSGD, Rounds
from slm_np.ranks.world import World

P = 1000


class Threads(World):
    """Ranks that are threads of this process: what rank 0 and another rank send each other."""

    def __init__(self, rank, size, box):
        self.rank, self.size, self.box, self.bytes = rank, size, box, 0

    def send_contribution(self, number, content):
        self.bytes += content.nbytes
        self.box["contributions"][self.rank] = number, content.view(np.uint8).copy()
        self.box["arrived"][self.rank].set()

    def contribution_of(self, rank):
        return self.box["contributions"].pop(rank, None)

    def send_result(self, rank, number, updates, content, whole=False):
        self.box["answers"][rank] = number, updates, whole, content.view(np.uint8).copy()
        self.box["answered"][rank].set()

    def receive_result(self):
        self.box["answered"][self.rank].wait(20)
        self.box["answered"][self.rank].clear()
        return self.box["answers"].pop(self.rank)

    def rest(self):
        threading.Event().wait(0.001)


def ranks(size, exchange="fp32", every=5, rate=0.7, momentum=0.9, n=P, dtype=np.float32):
    """The Rounds of `size` ranks, each with weights of its own memory, equal at the start."""
    events = {name: [threading.Event() for _ in range(size)] for name in ("answered", "arrived")}
    box, start = dict(contributions={}, answers={}, **events), np.random.default_rng(0).standard_normal(n).astype(dtype)
    return [Rounds(Threads(rank, size, box), start.copy(), every, rate, momentum, exchange) for rank in range(size)]


def end_round(all_ranks, updates):
    """All ranks meet. Returns the updates after which each goes on."""
    went_on = [None] * len(all_ranks)

    def one(rank):
        went_on[rank] = all_ranks[rank].end_round(updates)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(1, len(all_ranks))]
    for thread in threads:
        thread.start()
    one(0)
    for thread in threads:
        thread.join()
    return went_on


def train(all_ranks, seed, step=0.1):
    """Each rank moves its weights in its own direction."""
    for rank, rounds in enumerate(all_ranks):
        change = np.random.default_rng([seed, rank]).standard_normal(len(rounds.mine))
        rounds.mine += (step * change).astype(rounds.mine.dtype)


def torchft(test_data, name, layer):
    """The (history, global history) of a layer of the first replica: {step: value}."""
    found = json.loads((test_data / "torchft" / f"{name}.json").read_text(encoding="utf-8"))[0][0]
    histories = found["history"], found["global_parameter_history"]
    return tuple({int(step): values[layer][0][0] for step, values in history.items()} for history in histories)


@pytest.mark.parametrize(("layer", "first"), [("layers.0.weight", 3), ("layers.1.weight", 6)])
def test_outer_updates_are_those_of_torchft(test_data, layer, first):
    """Two replicas, a gradient of 2, inner rate 1, outer rate 2 without momentum, a meeting every 6 updates."""
    history, shared = torchft(test_data, "diloco_mocked_updates_0", layer)
    replicas = ranks(2, every=6, rate=2.0, momentum=0.0, n=1)
    for rounds in replicas:
        rounds.mine[:] = history[0]
        rounds.restart(0)
    for step in range(1, max(history) + 1):
        for rounds in replicas:
            rounds.mine -= 2
        if step % 6 == first % 6:
            end_round(replicas, step)
            assert [rounds.outer.weights[0] for rounds in replicas] == [shared.get(step, history[step])] * 2
        assert [rounds.mine[0] for rounds in replicas] == [history[step]] * 2


def test_the_outer_optimizer_is_sgd_with_nesterov_momentum():
    torch = pytest.importorskip("torch", reason="PyTorch, the oracle of this test, is not installed")
    random = np.random.default_rng(1)
    start = random.standard_normal(P)
    ours, theirs = OuterSGD(start, 0.7, 0.9), torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([theirs], lr=0.7, momentum=0.9, nesterov=True)
    for _ in range(6):
        mean = ours.weights + 0.1 * random.standard_normal(P)
        theirs.grad = theirs.detach() - torch.tensor(mean)
        ours.step(mean)
        optimizer.step()
        assert np.abs(ours.weights - theirs.detach().numpy()).max() < 1e-12


def test_rate_one_without_momentum_takes_the_mean():
    four = ranks(4, every=1, rate=1.0, momentum=0.0, dtype=np.float64)
    for step in range(1, 4):
        train(four, step)
        mean = np.mean([rounds.mine for rounds in four], 0)
        end_round(four, step)
        assert all(np.abs(rounds.mine - mean).max() < 1e-15 for rounds in four)


def test_one_rank_with_rate_one_without_momentum_changes_no_bit():
    (one,) = ranks(1, rate=1.0, momentum=0.0)
    for step in range(1, 4):
        train([one], step, step=3.0)
        before = one.mine.copy()
        assert one.end_round(5 * step) == 5 * step
        assert one.mine.tobytes() == before.tobytes()


@pytest.mark.parametrize("exchange", CODECS)
def test_all_ranks_go_on_from_the_same_bits(exchange):
    three = ranks(3, exchange)
    for step in range(1, 5):
        train(three, step)
        assert end_round(three, 5 * step) == [5 * step] * 3
        assert len({rounds.mine.tobytes() for rounds in three}) == 1
        assert [rounds.left_out for rounds in three] == [[], [], []]


@pytest.mark.parametrize(("exchange", "n_bytes", "error"), [("fp32", 4, 0), ("bf16", 2, 2**-8), ("int8", 1, 0.5 / 127)])
def test_what_is_sent_is_short_and_near(exchange, n_bytes, error):
    random = np.random.default_rng(2)
    before, change = random.standard_normal(P).astype(np.float32), 0.01 * random.standard_normal(P).astype(np.float32)
    content = CODECS[exchange].encoded(before, before - change)
    assert n_bytes * P <= content.nbytes <= n_bytes * P + 4 * -(-P // BLOCK) + BLOCK
    found = before - CODECS[exchange].decoded(before, content.view(np.uint8))
    largest = np.abs(change) if exchange == "bf16" else np.abs(change).max()
    assert np.all(np.abs(found - change) <= error * largest + 2e-7)
    assert (exchange == "fp32") == np.array_equal(found, before - (before - change))


def test_a_late_rank_is_left_out_and_comes_back(monkeypatch):
    monkeypatch.setattr("slm_np.ranks.rounds.LEAST", 0.2)
    three = ranks(3)
    train(three, 1)
    others = three[:2]
    assert end_round(others, 5) == [5, 5]
    assert three[0].left_out == [2] and three[2].number == 0
    assert np.array_equal(others[0].mine, others[1].mine) and not np.array_equal(others[0].mine, three[2].mine)
    late = threading.Thread(target=three[2].end_round, args=(5,))  # its round is over
    late.start()
    three[0].world.box["arrived"][2].wait(20)
    train(others, 2)
    assert end_round(others, 10) == [10, 10] and three[0].left_out == [2]
    late.join()
    assert three[2].number == 2 and len({rounds.mine.tobytes() for rounds in three}) == 1
    train(three, 3)
    assert end_round(three, 15) == [15] * 3 and three[0].left_out == []
    assert len({rounds.mine.tobytes() for rounds in three}) == 1
