"""Training without a gradient in memory: the update, its rounding, and the log that the weights come back from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import dldw
from dldw import noise
from dldw.directional import Directional
from dldw.directions import Drawn, Gaussian, RandomCoordinates
from dldw.low_rank import LowRank
from dldw.noise import draw_keys, wind
from dldw.runlog import digest, read
from dldw.slopes import Central, OneSided, Uniform
from dldw.streamed import Streamed
from dldw.update import rounded
from dldw.weights import Weights
from tests.contract.checks import seeded


def loss(model, batch):
    inputs, labels = batch
    return nn.functional.cross_entropy(model(inputs), labels, reduction="none")


def network(dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


def batches(count, dtype=torch.float64):
    for i in range(count):
        yield torch.randn(6, 5, dtype=dtype, generator=seeded(i)), torch.arange(6) % 3


def mezo(**settings):
    return dldw.MeZO(loss, generator=seeded(3), **settings)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in second)


SOURCES = {
    "mezo": mezo,
    "signs, four": lambda: mezo(directions=4, distribution="rademacher"),
    "low rank": lambda: dldw.LowRankEvolution(loss, population=6, generator=seeded(3)),
    "low rank, gaussian": lambda: dldw.LowRankEvolution(
        loss, population=6, rank=2, noise="gaussian", generator=seeded(3)
    ),
    "spsa": lambda: dldw.SPSA(loss, directions=3, generator=seeded(3)),
    "evolution": lambda: dldw.EvolutionStrategy(loss, sigma=0.1, population=8, generator=seeded(3)),
    "one weight": lambda: dldw.WeightPerturbation(loss, weights=3, generator=seeded(3)),
    "exact slopes": lambda: dldw.ForwardGradient(loss, directions=2, generator=seeded(3)),
}


# --- the update ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("small", [False, True], ids=["one tile", "tiles"])
def test_the_update_is_that_of_sgd_on_the_same_estimates(name, momentum, small, monkeypatch):
    if small:
        monkeypatch.setattr(noise, "TILE", 7)
    ours, theirs = network(), network()
    learner = dldw.ForwardOnly(ours, SOURCES[name](), 0.05, momentum=momentum)
    source, sgd = SOURCES[name](), torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=momentum)
    key = draw_keys(source.generator, 1)[0]
    for number, batch in enumerate(batches(4)):
        wind(source.generator, key, number)
        sgd.zero_grad()
        wanted = source(theirs, batch)
        sgd.step()
        torch.testing.assert_close(learner.step(batch), wanted)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert p.grad is None
            torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_weight_decay_and_schedule_are_those_of_torch():
    ours, theirs = network(), network()
    learner = dldw.ForwardOnly(ours, mezo(), 0.05, weight_decay=0.2, schedule=lambda step: 1 / (1 + step))
    source, sgd = mezo(), torch.optim.SGD(theirs.parameters(), lr=0.05, weight_decay=0.2)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1 / (1 + step))
    key = draw_keys(source.generator, 1)[0]
    for number, batch in enumerate(batches(4)):
        wind(source.generator, key, number)
        sgd.zero_grad()
        source(theirs, batch)
        sgd.step()
        schedule.step()
        learner.step(batch)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-12)


def test_recent_momentum_over_the_whole_run_is_momentum():
    ours, theirs = network(), network()
    recent = dldw.ForwardOnly(ours, mezo(), 0.05, momentum=dldw.RecentMomentum(0.8, steps=10))
    kept = dldw.ForwardOnly(theirs, mezo(), 0.05, momentum=0.8)
    for batch in batches(6):
        recent.step(batch)
        kept.step(batch)
    assert recent.state_dict()["update"] == {"moments": [], "lost": []}
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_recent_momentum_forgets_what_is_older():
    one, two = network(), network()
    short = dldw.ForwardOnly(one, mezo(), 0.05, momentum=dldw.RecentMomentum(0.8, steps=1))
    kept = dldw.ForwardOnly(two, mezo(), 0.05, momentum=0.8)
    for i, batch in enumerate(batches(3)):
        short.step(batch)
        kept.step(batch)
        same = all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(one.parameters(), two.parameters(), strict=True))
        assert same == (i < 2)


def test_it_learns():
    model, data = network(), next(batches(1))
    learner = dldw.ForwardOnly(model, mezo(directions=8), 0.1, momentum=0.5)
    losses = [float(learner.step(data)) for _ in range(300)]
    assert losses[-1] < 0.3 * losses[0]


# --- rounding ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_is_right_on_average_and_goes_to_a_neighbour(dtype):
    x = torch.tensor([1.0001, -0.3333, 3.14159, 1e-3], dtype=torch.float32).repeat_interleave(40_000)
    y = rounded(x, dtype, (1, 2), 3).float()
    for i, value in enumerate(x[::40_000].tolist()):
        part = y[40_000 * i : 40_000 * (i + 1)]
        neighbours = part.unique()
        assert len(neighbours) == 2
        assert neighbours[0] < value < neighbours[1]
        assert torch.tensor(neighbours[0], dtype=dtype).nextafter(torch.tensor(9.0, dtype=dtype)) == neighbours[1]
        gap = float(neighbours[1] - neighbours[0])
        assert abs(float(part.double().mean()) - value) < 5 * gap / 2 / 200


def test_rounding_what_fits_changes_nothing():
    x = torch.randn(1000, generator=seeded(0)).bfloat16()
    assert torch.equal(rounded(x.float(), torch.bfloat16, (1, 2), 3), x)


@pytest.mark.parametrize(("rounding", "moves"), [("nearest", False), ("stochastic", True), ("compensated", True)])
def test_small_updates_of_bfloat16_weights_are_lost_unless_rounding_keeps_them(rounding, moves):
    model = nn.Linear(64, 64, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    learner = dldw.ForwardOnly(
        model, dldw.MeZO(lambda m, b: m.weight.float().sum(1), generator=seeded(0)), 0.0, rounding=rounding
    )

    class Ones:
        count = 1
        add_to = Drawn.add_to

        def sums(self, weights, coefficients):
            yield 0, ..., torch.full_like(model.weight, coefficients[0], dtype=torch.float32)

    for number in range(2000):
        learner._update.apply(number, 1e-6, [(Ones(), [1.0])])
    mean = float(model.weight.double().mean())
    if moves:
        assert mean == pytest.approx(1 - 2000e-6, abs=3e-4 if rounding == "stochastic" else 2.0**-8)
    else:
        assert mean == 1.0


@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_what_is_added_to_weights_is_rounded_once_and_with_its_coefficients_in_full(dtype, rank, directions):
    model = nn.Linear(300, 700, bias=False).to(dtype)
    drawn = LowRank(directions, rank).draw(Weights.of(model), seeded(0), 0, directions)
    coefficients = [1.2345e-3, -0.0301, 0.271][:directions]
    a, b = (f.double() for f in drawn.factors[0])
    exact = model.weight.detach().double() + sum(c * a[i] @ b[i].T for i, c in enumerate(coefficients))
    moved = model.weight.detach().clone()
    drawn.add_to([moved], Weights.of(model), coefficients)
    assert (moved != exact.to(dtype)).double().mean() < (2e-3 if dtype != torch.float32 else 0.5)
    torch.testing.assert_close(moved.double(), exact, rtol=1.01 * torch.finfo(dtype).eps / 2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_weights_do_not_drift_at_learning_rate_zero(dtype):
    model = network(dtype)
    before = weights(model)
    learner = dldw.ForwardOnly(model, mezo(sigma=1e-2), 0.0)
    for batch in batches(50, dtype):
        learner.step(batch)
    assert equal(weights(model), before)


# --- the log -------------------------------------------------------------------------------------------------------

UPDATES = pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": dldw.RecentMomentum(0.9, 3)}, {"rounding": "stochastic"}],
    ids=str,
)


@UPDATES
@pytest.mark.parametrize("name", SOURCES)
def test_a_log_replays_to_the_same_weights_bit_for_bit(name, settings, tmp_path):
    dtype = torch.bfloat16 if "rounding" in settings and name != "exact slopes" else torch.float64
    model = network(dtype)
    base = weights(model)
    learner = dldw.ForwardOnly(model, SOURCES[name](), 0.02, log=tmp_path / "log", **settings)
    for batch in batches(5, dtype):
        learner.step(batch)
    trained = dldw.replay(base, tmp_path / "log")
    assert equal(trained, weights(model))
    assert not equal(base, trained)


def test_a_base_may_be_a_model_or_a_file_and_is_not_changed(tmp_path):
    model, base = network(), network()
    save_file(weights(base), tmp_path / "base.safetensors")
    learner = dldw.ForwardOnly(model, mezo(), 0.02, log=tmp_path / "log")
    for batch in batches(2):
        learner.step(batch)
    for given in (base, base.state_dict(), tmp_path / "base.safetensors"):
        assert equal(dldw.replay(given, tmp_path / "log"), weights(model))
    assert equal(weights(base), weights(network()))


def test_frozen_and_tied_weights_come_back_as_they_are(tmp_path):
    def make():
        model = network()
        model[0].bias.requires_grad_(False)
        model.add_module("again", model[2])
        return model

    model, base = make(), make()
    learner = dldw.ForwardOnly(
        model, dldw.MeZO(lambda m, b: m[2](m[1](m[0](b[0]))).square().sum(1)), 0.02, log=tmp_path / "log"
    )
    for batch in batches(2):
        learner.step(batch)
    replayed = dldw.replay(base, tmp_path / "log")
    assert torch.equal(replayed["0.bias"], base[0].bias)
    assert equal(replayed, weights(model))


def test_every_name_of_a_tied_weight_comes_back_trained(tmp_path):
    def make():
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)}).double()
        with torch.no_grad():
            model["embedding"].weight.copy_(torch.arange(20.0).view(5, 4) / 20)
        model["head"].weight = model["embedding"].weight
        return model

    model, tokens = make(), torch.tensor([1, 2])
    learner = dldw.ForwardOnly(
        model, dldw.MeZO(lambda m, b: m["head"](m["embedding"](b)).square().sum(1)), 0.02, log=tmp_path / "log"
    )
    learner.step(tokens)
    for base in (make(), make().state_dict()):
        replayed = dldw.replay(base, tmp_path / "log")
        assert equal(replayed, model.state_dict())


def test_ten_thousand_steps_are_less_than_a_megabyte(tmp_path):
    learner = dldw.ForwardOnly(network(), mezo(), 1e-6, log=tmp_path / "log")
    head = (tmp_path / "log").stat().st_size
    for batch in batches(100):
        learner.step(batch)
    assert head + 100 * ((tmp_path / "log").stat().st_size - head) < 1e6


def test_a_learner_goes_on_from_its_log(tmp_path):
    whole, data = network(), list(batches(6))
    for batch in data:
        (learner := locals().get("learner") or dldw.ForwardOnly(whole, mezo(), 0.02, momentum=0.5)).step(batch)
    first = dldw.ForwardOnly(network(), mezo(), 0.02, momentum=0.5, log=tmp_path / "log")
    for batch in data[:4]:
        first.step(batch)
    with open(tmp_path / "log", "ab") as file:
        file.write(b'{"step":4,"lr":0.0')
    model = network()
    second = dldw.ForwardOnly(model, mezo(), 0.02, momentum=0.5, log=tmp_path / "log")
    assert second.steps == 4
    for batch in data[4:]:
        second.step(batch)
    assert equal(weights(model), weights(whole))
    assert [step.number for step in read(tmp_path / "log")[1]] == list(range(6))


def test_a_saved_state_cuts_the_log_where_it_was_saved(tmp_path):
    whole, data = network(), list(batches(6))
    learner = dldw.ForwardOnly(whole, mezo(), 0.02, log=tmp_path / "log")
    for batch in data[:3]:
        learner.step(batch)
    state = {k: (v if k != "model" else {n: t.clone() for n, t in v.items()}) for k, v in learner.state_dict().items()}
    for batch in data[3:]:
        learner.step(batch)
    ended = weights(whole)
    model = network()
    again = dldw.ForwardOnly(model, mezo(), 0.02, log=tmp_path / "log")
    again.load_state_dict(state)
    assert len(read(tmp_path / "log")[1]) == 3
    for batch in data[3:]:
        again.step(batch)
    assert equal(weights(model), ended)
    assert equal(dldw.replay(network(), tmp_path / "log"), ended)


KILLED = """
    import sys
    import torch
    import dldw
    from tests.test_forward_only import batches, mezo, network
    learner = dldw.ForwardOnly(network(), mezo(), 0.02, log=sys.argv[1])
    for i, batch in enumerate(batches(10**6)):
        learner.step(batch)
        print(i, flush=True)
"""


def test_a_killed_run_loses_nothing_that_was_reported_done(tmp_path):
    script = textwrap.dedent(KILLED)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    ) as run:
        done = [int(run.stdout.readline()) for _ in range(30)][-1]
        os.kill(run.pid, signal.SIGKILL)
    model = network()
    learner = dldw.ForwardOnly(model, mezo(), 0.02, log=tmp_path / "log")
    assert learner.steps > done
    straight = network()
    other = dldw.ForwardOnly(straight, mezo(), 0.02)
    for batch in batches(learner.steps):
        other.step(batch)
    assert equal(weights(model), weights(straight))


def test_a_loss_that_is_not_finite_leaves_weights_and_log_as_they_were(tmp_path):
    model = network()
    learner = dldw.ForwardOnly(model, mezo(), 0.02, log=tmp_path / "log")
    first, second = batches(2)
    learner.step(first)
    before, log = weights(model), (tmp_path / "log").read_bytes()
    with pytest.raises(dldw.DldwError, match="the loss is nan"):
        learner.step((second[0] * float("nan"), second[1]))
    assert (equal(weights(model), before), (tmp_path / "log").read_bytes()) == (True, log)
    learner.step(second)
    straight = network()
    other = dldw.ForwardOnly(straight, mezo(), 0.02)
    for batch in (first, second):
        other.step(batch)
    assert equal(weights(model), weights(straight))


class Own(Directional):
    card = dldw.MeZO.card

    def __init__(self, directions=2):
        super().__init__(loss, Gaussian(directions), Central(1e-3), generator=seeded(1))
        self.directions = directions


def test_a_source_of_ones_own_is_passed_to_replay(tmp_path):
    model = network()
    learner = dldw.ForwardOnly(model, Own(), 0.02, log=tmp_path / "log")
    for batch in batches(2):
        learner.step(batch)
    with pytest.raises(dldw.DldwError, match=r"made with .*test_forward_only:Own, which is none of dldw's methods"):
        dldw.replay(network(), tmp_path / "log")
    assert equal(dldw.replay(network(), tmp_path / "log", source=Own()), weights(model))


# --- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dldw.ForwardOnly(network(), dldw.Backprop(loss), 0.1), "Backprop fills .grad by other means"),
        (lambda: dldw.ForwardOnly(network(), mezo(), -0.1), "lr must be finite and not negative, got -0.1"),
        (lambda: dldw.ForwardOnly(network(), mezo(), 0.1, momentum=1.0), "momentum must be at least 0 and below 1"),
        (lambda: dldw.ForwardOnly(network(), mezo(), 0.1, weight_decay=-1), "weight_decay must not be negative, got -1"),
        (lambda: dldw.ForwardOnly(network(), mezo(), 0.1, rounding="up"), "rounding must be one of nearest, stochastic"),
        (lambda: dldw.RecentMomentum(1.5, 3), "RecentMomentum needs a momentum between 0 and 1"),
        (lambda: dldw.ForwardOnly(nn.Tanh(), mezo(), 0.1), "Tanh has no trainable parameter"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make, text):
    with pytest.raises(dldw.DldwError, match=text):
        make()


def logged(path, **settings):
    return dldw.ForwardOnly(network(), mezo(**settings), 0.02, log=path)


def test_logs_that_do_not_fit_are_refused_and_left_as_they_are(tmp_path):
    path = tmp_path / "log"
    logged(path).step(next(batches(1)))
    kept = path.read_bytes()
    with pytest.raises(dldw.DldwError, match=r"belongs to another run: settings there .*'sigma': 0.001.*'sigma': 0.5"):
        logged(path, sigma=0.5)
    moved = network()
    with torch.no_grad():
        moved[0].bias[0] += 1e-9
    with pytest.raises(dldw.DldwError, match="belongs to other weights: they are not bit for bit"):
        dldw.replay(moved, path)
    with pytest.raises(dldw.DldwError, match=r"belongs to other weights: it has no 0\.weight"):
        dldw.replay({}, path)
    with pytest.raises(dldw.DldwError, match="belongs to another run: digest there"):
        dldw.ForwardOnly(moved, mezo(), 0.02, log=path)
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", '{"kind":"minimize","format":2}\n', '{"kind":"forward-only","format":1}\n', "[]\n"]
)
def test_files_that_are_no_logs_are_refused(text, tmp_path):
    (tmp_path / "log").write_text(text)
    with pytest.raises(dldw.DldwError, match=r"is no log of dldw.ForwardOnly"):
        dldw.replay(network(), tmp_path / "log")


def test_a_file_of_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "log").write_text("precious")
    with pytest.raises(dldw.DldwError, match=r"is no log of dldw.ForwardOnly"):
        logged(tmp_path / "log")
    assert (tmp_path / "log").read_text() == "precious"


def test_missing_files_and_directories_are_named(tmp_path):
    with pytest.raises(dldw.DldwError, match=r"the log .*none cannot be read: No such file"):
        dldw.replay(network(), tmp_path / "none")
    with pytest.raises(dldw.DldwError, match=r"the log .*log cannot be written: No such file"):
        logged(tmp_path / "none" / "log")
    logged(tmp_path / "log")
    with pytest.raises(dldw.DldwError, match="Give a safetensors file"):
        dldw.replay(tmp_path / "none", tmp_path / "log")


def test_a_gap_in_the_steps_is_found(tmp_path):
    learner = logged(tmp_path / "log")
    for batch in batches(3):
        learner.step(batch)
    lines = (tmp_path / "log").read_text().splitlines(keepends=True)
    (tmp_path / "log").write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(dldw.DldwError, match="is damaged: its steps are not numbered from 0 without a gap"):
        dldw.replay(network(), tmp_path / "log")


def test_a_state_of_another_run_is_refused(tmp_path):
    source = dldw.MeZO(loss, generator=seeded(4))
    learner, other = logged(tmp_path / "one"), dldw.ForwardOnly(network(), source, 0.02, log=tmp_path / "two")
    learner.step(next(batches(1)))
    with pytest.raises(dldw.DldwError, match=r"does not belong to the log .*two: another key"):
        other.load_state_dict(learner.state_dict())
    with pytest.raises(dldw.DldwError, match="saved after 1 steps, where the log has 0"):
        logged(tmp_path / "three").load_state_dict(learner.state_dict())


def test_every_line_of_a_log_is_json_and_floats_are_exact(tmp_path):
    learner = logged(tmp_path / "log")
    learner.step(next(batches(1)))
    head, step = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert (head["source"], head["weights"]) == ("mezo", ["0.weight", "0.bias", "2.weight", "2.bias"])
    assert head["digest"] == digest(dict(network().named_parameters()))
    assert set(step) == {"step", "lr", "slopes", "loss"}


@pytest.mark.parametrize("directions", [Streamed(5), Gaussian(5), LowRank(5), RandomCoordinates(5)], ids=repr)
@pytest.mark.parametrize("slope", [Central(1e-3), OneSided(Uniform(-0.1, 0.1))], ids=["fixed", "random steps"])
@pytest.mark.parametrize("memory", [1 << 28, 1])
def test_directions_are_drawn_again_as_they_were(directions, slope, memory):
    """Also where they do not fit together, and step lengths come from the same generator."""
    one, two = network(), network()
    source = Directional(loss, directions, slope, generator=seeded(4), evaluate="sequential")
    source._evaluator.memory = memory
    batch = next(batches(1))
    source(one, batch)
    after = source.generator.get_state()
    source.generator.manual_seed(4)
    estimate = source.estimate(two, batch)
    source.generator.manual_seed(4)
    weights = dldw.weights.Weights.of(two)
    for drawn, coefficients in dldw.directional.paired(
        source.redraw(weights, source.generator, 5), estimate.coefficients
    ):
        drawn.accumulate(weights, coefficients)
    assert torch.equal(source.generator.get_state(), after)
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
