"""Processes that exchange losses alone: equal weights in all, and the same as one process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dldw
from dldw.runlog import read
from tests.test_forward_only import batches, network, weights

SCRIPT = """
    import os, sys
    from datetime import timedelta
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file
    import dldw
    from tests.test_forward_only import batches, loss, network
    from tests.contract.checks import seeded
    torch.set_num_threads(1)
    store, rank, world, out, share, steps, spoil, name = sys.argv[1:]
    rank, world, steps = int(rank), int(world), int(steps)
    dist.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=world,
                            timeout=timedelta(seconds=60))
    evaluator = dldw.Evaluator("sequential", ranks=dldw.Ranks(share, check_every=2))
    sources = {
        "mezo": lambda: dldw.MeZO(loss, directions=4, evaluate=evaluator, generator=seeded(3 + 7 * rank)),
        "one pair": lambda: dldw.MeZO(loss, evaluate=evaluator, generator=seeded(3)),
        "one-sided": lambda: dldw.OneSidedBatch(loss, directions=4, evaluate=evaluator, generator=seeded(3)),
    }
    model = network()
    learner = dldw.ForwardOnly(model, sources[name](), 0.05, log=out + ".log")
    data = list(batches(steps))
    for number in range(learner.steps, steps):
        inputs, labels = data[number]
        if share == "examples":
            part = slice(rank * 6 // world, (rank + 1) * 6 // world)
            inputs, labels = inputs[part], labels[part]
        if spoil == "weights" and rank == 1 and number == 3:
            with torch.no_grad():
                model[0].weight[0, 0] += 1e-12
        if spoil == "batch" and rank == 1:
            inputs = inputs * float("nan")
        learner.step((inputs, labels))
        print(number, flush=True)
    save_file({k: v.detach().clone() for k, v in model.named_parameters()}, f"{out}.{rank}")
    dist.destroy_process_group()
"""


def start(tmp_path: Path, world: int, *, share="directions", steps=4, spoil="", name="mezo", attempt=0):
    out = tmp_path / f"{share}-{world}"
    arguments = [str(tmp_path / f"store-{share}-{world}-{attempt}")]
    return [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), *arguments, str(rank), str(world), str(out), share, str(steps),
             spoil, name],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(world)
    ], out  # fmt: skip


def finish(processes):
    ended = [process.communicate(timeout=120) for process in processes]
    for process, (_, error) in zip(processes, ended, strict=True):
        assert process.returncode == 0, error
    return ended


def alone(name="mezo", steps=4):
    from tests.contract.checks import seeded
    from tests.test_forward_only import loss

    sources = {
        "mezo": lambda: dldw.MeZO(loss, directions=4, evaluate="sequential", generator=seeded(3)),
        "one pair": lambda: dldw.MeZO(loss, evaluate="sequential", generator=seeded(3)),
        "one-sided": lambda: dldw.OneSidedBatch(loss, directions=4, evaluate="sequential", generator=seeded(3)),
    }
    model = network()
    learner = dldw.ForwardOnly(model, sources[name](), 0.05)
    for batch in batches(steps):
        learner.step(batch)
    return weights(model)


@pytest.mark.parametrize(("world", "name"), [(1, "mezo"), (2, "mezo"), (4, "one-sided"), (2, "one pair")])
def test_shared_directions_give_the_weights_of_one_process_bit_for_bit(world, name, tmp_path):
    processes, out = start(tmp_path, world, name=name)
    finish(processes)
    wanted = alone(name)
    for rank in range(world):
        found = load_file(f"{out}.{rank}")
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    replayed = dldw.replay(network(), f"{out}.log")
    assert all(torch.equal(replayed[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", ["mezo", "one-sided"])
def test_shared_examples_give_the_weights_of_the_whole_batch(name, tmp_path):
    processes, out = start(tmp_path, 2, share="examples", name=name)
    finish(processes)
    wanted = alone(name)
    first, second = load_file(f"{out}.0"), load_file(f"{out}.1")
    for key, value in wanted.items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-8)


def test_a_rank_whose_weights_differ_is_named_by_all(tmp_path):
    processes, _ = start(tmp_path, 4, spoil="weights", steps=6)
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "after step 3 the weights of rank 1 differ from those of the other ranks" in error


def test_a_loss_that_is_not_finite_in_one_rank_stops_all(tmp_path):
    processes, out = start(tmp_path, 2, spoil="batch")
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "the loss is nan at" in error
    assert read(f"{out}.log")[1] == []


def test_killed_processes_come_back_by_the_log(tmp_path):
    processes, out = start(tmp_path, 2, steps=10**5)
    for _ in range(5):
        processes[0].stdout.readline()
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = len(read(f"{out}.log")[1])
    assert done >= 5
    processes, out = start(tmp_path, 2, steps=done + 2, attempt=1)
    finish(processes)
    wanted = alone(steps=done + 2)
    for rank in range(2):
        assert all(torch.equal(value, wanted[key]) for key, value in load_file(f"{out}.{rank}").items())


def test_ranks_need_torch_distributed():
    with pytest.raises(
        dldw.DldwError, match=r"torch.distributed is not initialised.*Call torch.distributed.init_process"
    ):
        dldw.Ranks()
    with pytest.raises(dldw.DldwError, match="share must be directions or examples, got 'weights'"):
        dldw.Ranks("weights")
