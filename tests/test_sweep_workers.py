"""Sweeps: handing tasks out, and the workers."""

import os
import time
from types import SimpleNamespace

import psutil
import pytest
from distributed import Client as DaskClient
from distributed import LocalCluster
from distributed.scheduler import KilledWorker
from sweeps import named

from mesa_lib.experiments.sweep import cluster, runner, task
from mesa_lib.experiments.sweep.task import Outcome

# --- handing out -----------------------------------------------------------------------------------------


class Future:
    def __init__(self, outcome=None, status="finished", after=0.0, error=None):
        self.outcome, self.status, self.error = outcome, status, error
        self.at = time.monotonic() + after

    def done(self):
        return time.monotonic() >= self.at

    def result(self):
        return self.outcome

    def exception(self):
        return self.error


class Client:
    """In place of Dask's: `answers` says what becomes of each task, in the order in which they are handed out."""

    def __init__(self, answers, workers=2, resources=()):
        self.answers, self.workers, self.status = list(answers), workers, "running"
        self.handed, self.running, self.most = [], [], 0
        self.resources = resources or [{}] * workers

    def scheduler_info(self, n_workers):
        return {"workers": {n: {"nthreads": 1, "resources": self.resources[n]} for n in range(self.workers)}}

    def submit(self, function, one, threads, resources, **options):
        assert function is task.perform
        self.asked = resources
        self.running = [f for f in self.running if not f.done()]
        future = self.answers.pop(0)(one)
        self.handed.append(one.name)
        self.running.append(future)
        self.most = max(self.most, len(self.running))
        return future


@pytest.fixture
def there(monkeypatch):
    """Results are where the workers say."""
    monkeypatch.setattr(task.Task, "result", lambda self: {"key": self.key})


def ending(state="done", after=0.05, **more):
    return lambda one: Future(Outcome(one.name, state), after=after, **more)


def test_no_more_tasks_are_handed_out_than_there_are_workers(there):
    client = Client([ending() for _ in range(6)])
    found = [(t.name, o.state) for t, o in runner.outcomes_of(named(*"abcdef"), client)]
    assert sorted(found) == [(name, "done") for name in "abcdef"] and client.most == 2


def test_a_task_that_somebody_else_does_is_asked_for_again(monkeypatch, there):
    monkeypatch.setattr(runner, "BUSY_AGAIN", 0.05)
    client = Client([ending("busy"), ending(), ending("busy"), ending("before")])
    found = [(t.name, o.state) for t, o in runner.outcomes_of(named("a", "b"), client)]
    assert sorted(found) == [("a", "before"), ("b", "done")]


def test_a_worker_that_dies_again_and_again_fails_its_task_alone(there):
    killed = KilledWorker("a", None, 2)
    client = Client([lambda one: Future(status="error", error=killed), ending()])
    found = {t.name: o for t, o in runner.outcomes_of(named("a", "b"), client)}
    assert found["a"].state == "failed" and "its worker died again and again" in found["a"].message
    assert found["b"].state == "done"


def test_without_any_worker_the_rest_is_given_up(monkeypatch):
    monkeypatch.setattr(runner, "NO_WORKER", 0.2)
    monkeypatch.setattr(runner, "COUNT_AGAIN", 0.01)
    found = [o for _, o in runner.outcomes_of(named("a", "b"), Client([], workers=0))]
    assert [o.state for o in found] == ["failed"] * 2 and "no worker for" in found[0].message


def test_without_its_scheduler_the_rest_is_given_up_at_once():
    client = Client([ending(after=60)], workers=1)
    found = runner.outcomes_of(named("a", "b"), client, tick=lambda: setattr(client, "status", "closed"))
    assert [(t.name, o.message) for t, o in found] == [(n, "the scheduler is gone") for n in "ab"]


def test_what_a_worker_says_is_done_has_to_be_there():
    ((_, outcome),) = runner.outcomes_of(named("a"), Client([ending()]))
    assert outcome.state == "failed" and "its worker says done, but" in outcome.message


def test_what_a_worker_could_not_begin_is_told():
    client = Client([lambda one: Future(status="error", error=ModuleNotFoundError("No module named 'mesa_lib'"))])
    ((_, outcome),) = runner.outcomes_of(named("a"), client)
    assert outcome.message == "its worker could not begin: ModuleNotFoundError(\"No module named 'mesa_lib'\")"


def test_with_gpus_only_workers_that_have_one_count(there):
    client = Client([ending() for _ in range(3)], workers=3, resources=[{"GPU": 4.0}, {}, {}])
    assert len(list(runner.outcomes_of(named("a", "b", "c"), client))) == 3
    assert client.most == 1 and client.asked == {"GPU": 1}


def test_the_clock_goes_on_while_nothing_ends(there, monkeypatch):
    monkeypatch.setattr(runner, "COUNT_AGAIN", 0.01)
    ticks = []
    waiting = Future(Outcome("a", "done"))
    waiting.done = lambda: len(ticks) > 3  # it would wait for ever, if ticks depended on tasks that end
    list(runner.outcomes_of(named("a"), Client([lambda one: waiting]), tick=lambda: ticks.append(1)))
    assert len(ticks) > 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (120, "120 s"), (200, "3 min"), (5399, "1 h 30 min"), (12000, "3 h 20 min")],
)
def test_durations_are_told_in_the_unit_that_fits(seconds, text):
    assert runner.duration(seconds) == text


def test_without_a_terminal_every_task_has_a_line_with_the_time_left(capsys, monkeypatch):
    (one,) = named("a")
    for at_once, left in ((1, "120 s"), (2, "60 s"), (3, "0 s")):
        now = [0.0]
        monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=lambda now=now: now[0]))
        progress = runner.Progress(3, at_once)
        now[0] = 60.0
        progress.show(one, Outcome("a", "done", 60))
        progress.show(one, Outcome("a", "failed", 2, "because\nof this"))
        first, second = capsys.readouterr().err.splitlines()
        assert first == f"[1/3] a: done in 60 s; {left} left" and second.startswith("[2/3] a: failed in 2 s: because; ")


# --- workers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "memory", "gpus", "wanted", "plan"),
    [
        (2, 24, (), {}, (2, 1)),
        (16, 24, (), {}, (8, 2)),
        (16, 2, (), {}, (1, 16)),
        (16, 24, (), {"jobs": 3}, (3, 5)),
        (16, 24, (), {"threads": 8}, (2, 8)),
        (16, 64, (), {"tasks": 2}, (2, 8)),
        (2, 24, (), {"jobs": 4}, (4, 1)),
        (16, 24, (), {"jobs": 100, "tasks": 4}, (4, 4)),
        (16, 24, ("0", "1"), {}, (2, 8)),
        (16, 24, ("0",), {"jobs": 4}, (4, 4)),
        (16, 64, ("0", "1", "2", "3"), {"tasks": 2}, (2, 8)),
        (16, 24, ("0", "1"), {"device": "cpu", "jobs": 1}, (1, 16)),
    ],
)
def test_workers_are_gpus_or_what_cores_and_memory_allow(monkeypatch, cores, memory, gpus, wanted, plan):
    monkeypatch.setattr(cluster, "CPU_COUNT", cores)
    monkeypatch.setattr(cluster, "MEMORY_LIMIT", memory * 2**30)
    monkeypatch.setattr(cluster, "visible_gpus", lambda: gpus)
    found = cluster.plan(**wanted)
    assert (found.workers, found.threads) == plan
    assert found.gpus == (gpus if wanted.get("device") != "cpu" else ())


@pytest.mark.parametrize("wanted", [{"jobs": 0}, {"threads": 0}, {"jobs": -1}])
def test_no_worker_and_no_thread_are_refused(wanted):
    with pytest.raises(ValueError, match="expected a number from 1"):
        cluster.plan(**wanted)


def test_workers_have_their_threads_and_a_card_each_and_answer_this_machine_alone():
    wanted = cluster.Plan(2, 3, ("5", "7"))
    with cluster.workers(wanted) as client:
        assert cluster.capacity(client) == (2, {"GPU": 1})
        known = cluster.list_workers(client)
        assert all(address.startswith("tls://127.0.0.1:") for address in known)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        look = lambda: [os.environ.get(name) for name in names]  # noqa: E731 (sent by value)
        found = [client.submit(look, workers=[w], pure=False).result() for w in known]
        assert sorted(found) == [["3", "3", "5"], ["3", "3", "7"]]
        assert str(wanted) == "2 workers of 3 threads on GPU 5, 7"
        me = psutil.Process()
        listening = [c.laddr.ip for p in [me, *me.children(recursive=True)] for c in p.net_connections("inet")
                     if c.status == psutil.CONN_LISTEN]  # fmt: skip
        assert len(listening) >= 3 and set(listening) == {"127.0.0.1"}
        stranger = {"address": client.scheduler.address.replace("tls", "tcp"), "timeout": 3, "set_as_default": False}
        with pytest.raises((OSError, TimeoutError)):
            DaskClient(**stranger)


def test_an_existing_scheduler_is_taken_and_one_that_is_not_there_is_named():
    options = {"dashboard_address": None, "protocol": "tcp", "processes": False, "silence_logs": 50}
    with LocalCluster(n_workers=2, threads_per_worker=1, **options) as there:
        with cluster.connect(there.scheduler_address) as client:
            assert cluster.capacity(client) == (2, {})
    with LocalCluster(n_workers=1, threads_per_worker=4, **options) as there:
        with pytest.raises(ValueError, match="runs 4 tasks at a time; expected workers started with --nthreads 1"):
            with cluster.connect(there.scheduler_address):
                pass
    with pytest.raises(ValueError, match="scheduler 'tcp://127.0.0.1:9': no answer"):
        with cluster.connect("tcp://127.0.0.1:9", wait=1):
            pass
