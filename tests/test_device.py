"""Device, precision, seeds, memory."""

import json
import sys

import pytest
import torch

from mesa_lib import device as devices

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_auto_takes_the_best_device_there_is(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert devices.pick_device("auto").type == chosen
    assert devices.pick_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"device = '{name}': this machine has none"):
        devices.pick_device(name)


@pytest.mark.parametrize("name", ["", "tpu", "CPU"])
def test_an_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match=f"device = '{name}': expected one of"):
        devices.pick_device(name)


@pytest.mark.parametrize(
    ("precision", "fast", "expected"),
    [("float32", True, torch.float32), ("bf16", False, torch.bfloat16), ("auto", True, torch.bfloat16),
     ("auto", False, torch.float32)],
)  # fmt: skip
def test_precision_decides_how_products_are_computed(monkeypatch, precision, fast, expected):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda where: fast)
    with devices.autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="precision = 'half'"):
        devices.autocast(CPU, "half")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({}, False), ({"avx2": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_bf16_is_fast_where_the_processor_has_it(monkeypatch, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert devices.has_fast_bf16(CPU) is fast


def test_random_numbers_follow_the_seed_and_leave_the_global_ones_alone():
    before = torch.random.get_rng_state()
    first, again, other = (torch.rand(5, generator=devices.rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_description_can_be_written_to_a_result_file():
    known = json.loads(json.dumps(devices.describe(CPU)))
    assert known["torch"] == torch.__version__ and known["device"] == "cpu"
    assert known["threads"] == torch.get_num_threads() and known["device_name"]


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    """Without it every large tensor is mapped page by page, time and again."""
    import resource

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(16 * 2**20)  # 64 MiB each, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    if not devices.keep_memory():
        pytest.skip("another C library")
    faults()
    assert faults() < 1000  # one of these tensors alone has 16,384 pages


# --- seeds -----------------------------------------------------------------------------------------------


def test_derived_seeds_have_their_published_values():
    """A changed derivation changes every result: `store.artifacts.VERSION` must then rise."""
    assert devices.derive_seed(0, "noise") == 1128612013
    assert devices.derive_seed(7, "level", 2) == 1688277906


def test_derived_seeds_differ_by_seed_purpose_and_number():
    purposes = ["noise", "generator", "statistics network", "images", "level", ""]
    seeds = [devices.derive_seed(seed, name, k) for seed in range(20) for name in purposes for k in range(20)]
    assert len(set(seeds)) == len(seeds) == 20 * 6 * 20
    assert all(isinstance(seed, int) and 0 <= seed < 2**31 for seed in seeds)
    assert devices.derive_seed(1, "level", 11) != devices.derive_seed(11, "level", 1)
    assert max(seeds) > 2**30 > min(seeds), "all 31 bits are used"


def test_a_derived_seed_is_fit_for_every_generator():
    seed = devices.derive_seed(2**31 - 1, "weights")
    assert torch.equal(torch.rand(3, generator=devices.rng(seed)), torch.rand(3, generator=devices.rng(seed)))


def test_one_thread_is_used_inside_and_restored():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="stopped"), devices.one_thread():
        assert torch.get_num_threads() == 1
        raise RuntimeError("stopped")
    assert torch.get_num_threads() == before
