"""The benchmark of fast attention on a tiny random model: comparison, speed, resumed runs."""

import json
from collections import Counter

import pytest
from PIL import Image

from attnctl.bench.conditions import PLAIN
from attnctl.bench.journal import FILE_NAME
from attnctl.bench.sparse.conditions import SWEEPS, Way, choose_ways, mask_alone
from attnctl.bench.sparse.measure import RESULT_FILE, SparseSettings, measure
from attnctl.bench.sparse.peers import PEERS
from attnctl.bench.sparse.speed import SpeedSettings, summarise
from attnctl.bench.sparse.text import FIDELITY_HEAD, SPEED_HEAD, fidelity_rows, speed_rows
from attnctl.bench.steering import SteeringSettings
from attnctl.cli import main
from attnctl.errors import SettingError
from attnctl.techniques.rettention import Rettention

STEPS = 4
NAMES = ["mask alone 0.8 every 2", "re-ttention 0.8 every 2", "no growth 0.8 every 2"]
ALONE, WHOLE, _ = NAMES


def ways(sparsities=(0.8,), sweeps=("re-ttention",)):
    made = choose_ways([], [], sweeps, sparsities, [2], steps=STEPS, least_tokens=64)
    return [small_blocks(way) for way in made]


def small_blocks(way):
    """The same with blocks that a tiny grid has several of."""
    condition = way.condition
    listed = tuple((name, {**given, "block": 16}) for name, given in condition.techniques)
    return Way(type(condition)(condition.name, listed), way.beside)


def run(pipe, folder, made=None, **more):
    drawing = SteeringSettings("tiny", (1, 2), 1, "tuning", STEPS, 4.0, 1)
    settings = SparseSettings(drawing, 64, SpeedSettings(repeats=2, steps=STEPS))
    return measure(pipe, settings, made or ways(), folder, **more)


def without_times(record):
    kept = {name: value for name, value in record.items() if name != "speed"}
    return kept, [line["condition"] for line in record["speed"]["lines"]]


@pytest.fixture(scope="module")
def whole(tiny_folder, tmp_path_factory):
    import attnctl

    return run(attnctl.load_pipeline(tiny_folder), tmp_path_factory.mktemp("whole"))


def test_every_way_draws_the_same_prompts_and_other_pictures(whole):
    names = [way["name"] for way in whole.record["ways"]]
    assert names == [PLAIN, *NAMES]
    drawn = {n: [(e["id"], e["seed"]) for e in whole.entries if e["condition"] == n] for n in names}
    assert len({tuple(listed) for listed in drawn.values()}) == 1
    assert max(Counter(entry["pixels"] for entry in whole.entries).values()) <= 2


def test_pictures_and_layers_are_compared_with_dense(whole):
    for name in NAMES:
        line = whole.line(name)
        assert line["psnr"] > 10
        assert -1 < line["ssim"] < 1
        assert line["layers"]
        assert all(error > 0 for error in line["layers"].values())
    assert whole.line(WHOLE)["cache_bytes"] > 0
    assert whole.line(ALONE)["cache_bytes"] == 0


def test_the_gain_over_the_mask_alone_is_paired(whole):
    line = whole.line(WHOLE)
    of = {(e["condition"], e["id"]): e for e in whole.entries}
    gains = [
        of[WHOLE, e["id"]]["psnr"] - of[ALONE, e["id"]]["psnr"]
        for e in whole.entries
        if e["condition"] == PLAIN
    ]
    assert line["gain"]["mean"] == pytest.approx(sum(gains) / len(gains))
    assert line["gain"]["least"] == min(gains)
    assert "gain" not in whole.line(ALONE)


def test_speed_has_every_round_and_the_peak_memory(whole):
    lines = {line["condition"]: line for line in whole.record["speed"]["lines"]}
    assert lines[PLAIN]["peak_bytes"] > 0
    line = lines[WHOLE]
    assert len(line["rounds"]) == 2
    for entry in line["rounds"]:
        assert len(entry["dense"]["steps"]) == len(entry["mine"]["steps"]) == STEPS
        assert entry["mine"]["attention"] > 0
        assert entry["dense"]["attention"] > 0
    assert line["whole"]["low"] <= line["whole"]["median"] <= line["whole"]["high"]


def test_ratios_count_the_steps_that_act():
    def side(*steps, attention):
        return {
            "wall": sum(steps),
            "cpu": sum(steps),
            "steps": list(steps),
            "attention": attention,
            "steps_cpu": list(steps),
        }

    one = {"dense": side(4, 4, 4, attention=6), "mine": side(4, 1, 1, attention=2)}
    found = summarise([{**one, "acting": [1, 2], "load": 1.0}] * 2)
    assert found["whole"]["median"] == 2
    assert found["acting"]["median"] == 4
    assert found["attention"]["median"] == 3
    assert found["attention_share"] == 0.75


def test_a_run_that_was_stopped_anywhere_is_resumed_to_the_same_result(tiny, tmp_path, whole):
    told = []

    def stop(text):
        told.append(text)
        if len(told) in (1, 4):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(tiny, tmp_path, resume=bool(told), say=stop)
        for journal in tmp_path.rglob(FILE_NAME):
            journal.write_bytes(journal.read_bytes()[:-15])  # as if killed while writing
    again = run(tiny, tmp_path, resume=True)
    assert without_times(again.record) == without_times(whole.record)
    assert json.loads((tmp_path / RESULT_FILE).read_text())["benchmark"] == "sparse"
    with pytest.raises(SettingError, match="--resume"):
        run(tiny, tmp_path)


def test_the_tables_have_a_row_a_way(whole):
    rows = fidelity_rows(whole.record)
    assert [row[0] for row in rows] == NAMES
    assert {len(row) for row in rows} == {len(FIDELITY_HEAD)}
    rows = speed_rows(whole.record["speed"])
    assert len(rows) == len(NAMES) + 1
    assert {len(row) for row in rows} == {len(SPEED_HEAD)}


def test_the_mask_alone_acts_at_the_sparse_steps_of_the_technique():
    settings = mask_alone(Rettention(steps="25%-", refresh=5), 20)
    assert settings["steps"] == "6,7,8,9,11,12,13,14,16,17,18,19"
    assert settings["sparsity"] == Rettention().sparsity
    with pytest.raises(SettingError, match="take more --steps"):
        mask_alone(Rettention(refresh=1), 20)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_ways_of_a_sweep_can_be_built(sweep):
    made = choose_ways([], [], [sweep], [], steps=20, least_tokens=1024)
    assert made[0].name == PLAIN
    assert len(made) > 3
    for way in made:
        assert way.beside == "" or way.beside in [other.name for other in made]
        assert way.peer is not None or len(way.condition.entries([])) <= 2


def test_without_public_code_it_is_told_and_the_rest_is_measured(tiny, tmp_path, monkeypatch):
    for peer in PEERS:
        assert peer.origin
    monkeypatch.setattr("attnctl.bench.sparse.peers.importlib.util.find_spec", lambda _: None)
    made = choose_ways([], [], ["peers"], [], steps=STEPS, least_tokens=64)
    done = run(tiny, tmp_path, made)
    absent = done.record["absent"]
    assert set(absent) == {"tomesd", "agentsd", "ToDo"} == set(done.record["speed"]["refused"])
    assert "pip install tomesd" in absent["tomesd"]
    drawn = {entry["condition"] for entry in done.entries}
    assert drawn == {way.name for way in made} - set(absent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sweeps": ["mask"]}, "masks"),
        ({"techniques": ["re-ttention:sparsity=2"]}, "sparsity"),
        ({"techniques": ["sparse-attention"] * 2}, "two conditions"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(changes, message):
    given = {"techniques": [], "recipes": [], "sweeps": [], "sparsities": []} | changes
    with pytest.raises(SettingError, match=message):
        choose_ways(*given.values(), steps=20, least_tokens=0)


def test_a_network_that_is_unknown_is_refused():
    with pytest.raises(SettingError, match="sd15"):
        SpeedSettings("sd51")


def test_the_command_writes_result_table_sheet_and_plot(tiny_folder, tmp_path, capsys):
    order = ["bench", "sparse", "--model", str(tiny_folder), "--objects", "1", "--count", "1"]
    order += ["--size", "64", "--steps", "2", "--timed-steps", "1", "--repeats", "1", "--quiet"]
    order += ["-t", "token-downsampling", "-t", "sparse-attention:least_tokens=256,block=16"]
    order += ["--latents", "8", "--out", str(tmp_path)]
    assert main(order) == 0
    text = capsys.readouterr().out
    assert "| token-downsampling |" in text
    assert "no selected site has 256 image tokens" in text  # on the timed latents: told, not timed
    assert Image.open(tmp_path / "sheet.png").width > 192
    assert Image.open(tmp_path / "plot.png").width > 400
    assert (tmp_path / "table.md").read_text().strip() in text
