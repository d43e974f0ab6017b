"""A run that grows: tasks leave and come back, stages begin, and a resume finds all of it."""

import json

import jax
import numpy as np
import pytest
from test_resume import equal
from tiny import SETTINGS, tiny

from scalezero import load
from scalezero.agent.stages import stage
from scalezero.run.evaluate import Evaluation
from scalezero.run.export import export
from scalezero.run.folder import RunError, RunFolder
from scalezero.run.run import Run
from scalezero.run.train import train

GROWING = {
    "on": True,
    "stages": 3,
    "first_updates": 4,
    "stage_updates": 20,
    "rank": 2,
    "target": 0.5,
    "reopen": 0.5,
}


def scored(run: Run, *scores: float) -> Evaluation:
    """An evaluation in which each task has a normalised score."""
    raw = (t.floor + s * (t.ceiling - t.floor) for t, s in zip(run.tasks, scores, strict=True))
    return Evaluation(run.tasks, tuple((score, score) for score in raw))


def turns(run: Run, count: int) -> None:
    for _ in range(count):
        run.turn()
    run.settle()


@pytest.fixture(scope="module", params=["share", "stop in bfloat16"])
def grown_run(request, tmp_path_factory):
    """A run at stage 1 with its first task solved, which then saved and learnt on."""
    freed, _, narrow = request.param.partition(" in ")
    model = SETTINGS["model"] | {"precision": narrow or "float32"}
    config = tiny(dps=GROWING | {"freed": freed}, model=model)
    run = Run(config, RunFolder.open(tmp_path_factory.mktemp("runs") / "r", config))
    turns(run, 24)
    assert run.grow() == ()  # nothing is solved, and no stage has lasted long enough
    run.before_solved = run._by_task()
    run.said = [*run.judge(scored(run, 0.9, 0.1)), *run.grow()]
    run.at_switch = run.updates
    turns(run, 12)
    run.save()
    run.learn(2)
    run.settle()
    run.close()
    return config, run


def test_a_solved_task_leaves_and_the_model_grows(grown_run):
    _, run = grown_run
    assert run.said[0].startswith("toy/target solved: mean return")
    expected = f"stage 1 at update {run.at_switch}: 1 of 2 tasks solved, 0 when it began, quota 1"
    assert run.said[1] == expected
    assert stage(run.state.world) == stage(run.state.target) == run.curriculum.stage == 1
    assert run.updates > run.at_switch


def test_a_switch_says_what_the_model_takes_before_and_after(grown_run):
    _, run = grown_run
    lines = [json.loads(line) for line in run.folder.events.read_text().splitlines()]
    (switch,) = (line for line in lines if line["event"] == "stage")
    before, after = switch["before"], switch["after"]
    assert after["parameters"] > before["parameters"] >= before["trained"]
    assert after["trained"] < before["trained"]
    assert after["optimiser_bytes"] < before["optimiser_bytes"]
    assert before["update_seconds"] > 0


def test_a_solved_task_costs_no_interactions(grown_run):
    config, run = grown_run
    spent = {name: n - run.before_solved[name] for name, n in run._by_task().items()}
    assert spent["toy/target"] == 0
    lanes = config.data.envs * (2 if config.dps.freed == "share" else 1)
    assert len(run.replays[1].lanes) == lanes
    assert spent["toy/chain"] > 0


def test_decisions_are_those_of_a_slot_that_did_not_rest(grown_run):
    config, run = grown_run
    spent = {name: n - run.before_solved[name] for name, n in run._by_task().items()}
    before = sum(run.before_solved.values()) / 2
    share = 2 if config.dps.freed == "share" else 1
    assert run.decisions == before + spent["toy/chain"] / share


def test_resuming_after_a_switch_gives_the_uninterrupted_learner(grown_run):
    config, run = grown_run
    again = Run(config, RunFolder.open(run.folder.path, config))
    again.learn(2)
    again.settle()
    again.close()
    assert again.curriculum == run.curriculum
    assert equal(again.state, run.state)


def test_a_turn_that_owes_more_updates_than_a_stage_has_left_makes_no_more(tmp_path):
    learn = SETTINGS["learn"] | {"replay_ratio": 8.0}
    config = tiny(dps=GROWING, learn=learn)
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    try:
        while run.updates < GROWING["stage_updates"]:
            turns(run, 1)
        assert run.updates == GROWING["stage_updates"]
        owed = learn["replay_ratio"] * (run.decisions - config.data.warmup_decisions) - run.updates
        assert owed >= learn["updates_per_call"]
    finally:
        run.close()


def test_the_switch_itself_is_the_same_after_a_resume(tmp_path):
    config = tiny(dps=GROWING)
    folder = RunFolder.open(tmp_path / "r", config)
    run = Run(config, folder)
    turns(run, 24)
    run.save()
    states = []
    for each in (run, None):
        each = each or Run(config, folder)
        each.judge(scored(each, 0.9, 0.1))
        assert each.grow()
        each.learn(2)
        each.settle()
        each.close()
        states.append(each.state)
    assert equal(*states)


def test_a_saved_run_of_any_stage_can_be_loaded(grown_run):
    _, run = grown_run
    agent = load(run.folder.path)
    assert stage(agent.world) == 1
    action = agent.act(np.zeros(run.tasks[0].observation.shape, np.float32), task="toy/target")
    assert np.all(np.isfinite(action))


@pytest.mark.parametrize("merge", [True, False])
def test_an_exported_agent_decides_as_the_run_does(grown_run, tmp_path, merge):
    _, run = grown_run
    export(run.folder.path, tmp_path / "out", merge=merge)
    one, other = load(run.folder.path), load(tmp_path / "out")
    assert stage(other.world) == (0 if merge else 1)
    seen = np.linspace(-1, 1, 2, dtype=np.float32)
    acts = [agent.act(seen, task="toy/target") for agent in (one, other)]
    np.testing.assert_allclose(*acts, atol=1e-4)
    with pytest.raises(RunError, match="is an exported agent"):
        Run(run.config, RunFolder(tmp_path / "out", run.config))
    with pytest.raises(RunError, match="is there already"):
        export(run.folder.path, tmp_path / "out", merge=merge)


@pytest.mark.parametrize("freed", ["share", "stop"])
def test_what_a_solved_task_remembers_cannot_matter_to_the_shared_weights(tmp_path, freed):
    config = tiny(
        tasks=["toy/target", "toy/chain", "toy/catch"],
        model=SETTINGS["model"] | {"vit_patch": 32},
        data=SETTINGS["data"] | {"replay_bytes": 20_000_000},
        dps=GROWING | {"freed": freed},
    )
    backbones = []
    for spoiled in (False, True):
        run = Run(config, RunFolder.open(tmp_path / f"r{spoiled}", config))
        turns(run, 24)
        run.judge(scored(run, 0.1, 0.1, 0.9))  # the only one that shows pictures is solved
        if spoiled:
            run.replays[2].store.columns["reward"][:] = 1000.0
            run.replays[2].store.columns["observation"][:] = 77
        run.learn(2)
        run.settle()
        run.close()
        backbones.append(run.state.world.backbone)
    assert equal(*backbones)


def test_events_say_what_was_decided_and_what_it_had_cost(grown_run):
    _, run = grown_run
    lines = [json.loads(line) for line in run.folder.events.read_text().splitlines()]
    said = [line for line in lines if line["event"] in ("curriculum", "stage")]
    assert [line["why"] for line in said] == run.said
    assert said[0]["interactions"] == run.before_solved


def test_a_new_stage_lets_go_of_the_updates_of_the_one_before(tmp_path):
    def updates() -> int:
        programs = jax.local_devices()[0].client.live_executables()
        return sum("update_many" in each.hlo_modules()[0].name for each in programs)

    jax.clear_caches()  # of other tests
    config = tiny(dps=GROWING)
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    turns(run, 60)
    assert (run.curriculum.stage, updates()) == (0, 1)
    assert run.grow()
    turns(run, 8)
    run.close()
    assert (run.curriculum.stage, updates()) == (1, 1)


@pytest.mark.parametrize("freed", ["share", "stop"])
def test_tasks_that_leave_or_come_back_compile_nothing(tmp_path, freed):
    compiled = []

    def listen(event, seconds, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(seconds)

    jax.clear_caches()  # other runs of the same settings grew before
    config = tiny(dps=GROWING | {"freed": freed})
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    turns(run, 24)
    jax.monitoring.register_event_duration_secs_listener(listen)
    assert run.judge(scored(run, 0.9, 0.1))
    turns(run, 8)
    assert run.judge(scored(run, 0.1, 0.1))
    turns(run, 8)
    assert not compiled
    assert run.judge(scored(run, 0.9, 0.1))
    assert run.grow()
    turns(run, 8)
    run.close()
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled  # so it would have been heard


def test_a_task_that_slips_comes_back(tmp_path):
    config = tiny(dps=GROWING)
    run = Run(config, RunFolder.open(tmp_path / "r", config))
    turns(run, 8)
    run.judge(scored(run, 0.9, 0.1))
    turns(run, 4)
    spent = run._by_task()["toy/target"]
    assert run.judge(scored(run, 0.3, 0.1)) == ()  # below its target, yet not far enough
    assert run.judge(scored(run, 0.2, 0.1))[0].startswith("toy/target reopened")
    turns(run, 8)
    run.close()
    assert run._by_task()["toy/target"] > spent


def test_a_run_ends_when_all_tasks_are_solved(tmp_path):
    floors = {name: {"floor": -1e6} for name in ("toy/target", "toy/chain")}
    config = tiny(dps=GROWING | {"target": 0.0, "end": True}, env=floors)
    folder = RunFolder.open(tmp_path / "r", config)
    result = train(config, folder)
    evaluations = json.loads(folder.evaluations.read_text())
    assert evaluations[-1]["decisions"] < config.run.decisions
    again = train(config, RunFolder.open(folder.path, config))
    assert len(json.loads(folder.evaluations.read_text())) == len(evaluations)
    assert again.returns == result.returns


@pytest.mark.parametrize(("limit", "most"), [("updates", 6), ("interactions", 90)])
def test_a_run_ends_when_its_updates_or_interactions_are_spent(tmp_path, limit, most):
    config = tiny(run=SETTINGS["run"] | {limit: most})
    folder = RunFolder.open(tmp_path / "r", config)
    train(config, folder)
    last = json.loads(folder.evaluations.read_text())[-1]
    assert most <= last[limit] < most + 16  # no more than a turn and the updates it is worth
    assert last["decisions"] < config.run.decisions
    train(config, folder)  # the same command again: there is nothing to go on with
    assert json.loads(folder.evaluations.read_text())[-1] == last
