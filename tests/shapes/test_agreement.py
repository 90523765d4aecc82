"""How the verifier is compared with labels, and how well it agrees with the shipped ones."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from attnctl.bench.statistics import Paired
from attnctl.shapes import prompts
from attnctl.shapes.agreement import (
    Label,
    compare,
    count_agreement,
    describe,
    kappa,
    main,
    read_labels,
    read_pictures,
    summarise,
)
from attnctl.shapes.verifier import VerifierSettings

SHIPPED = Path(__file__).parents[2] / "benchmarks" / "verifier"


def save_labels(folder, *records):
    """One red circle and one green square a picture; records give the answers."""
    picture = Image.new("RGB", (64, 64), (130, 130, 130))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((6, 8, 28, 30), fill=(219, 36, 36))
    draw.rectangle((36, 34, 56, 54), fill=(33, 168, 56))
    grid = Image.new("RGB", (20 * 64, 64))
    for number in range(len(records)):
        grid.paste(picture, (number * 64, 0))
    grid.save(folder / "pictures.png")
    full = [{"model": "a", "seed": 0, "extra": 0, "debatable": False} | r for r in records]
    (folder / "labels.json").write_text(json.dumps(full))


RIGHT = {"prompt": "a red circle and a green square", "there": [True, True]}
WRONG = {"prompt": "a red circle and a blue cross", "there": [True, True], "debatable": True}


def test_agreement_of_known_labels_is_counted(tmp_path):
    save_labels(tmp_path, RIGHT, WRONG, RIGHT | {"there": [False, True], "extra": 1})
    summary = summarise(compare(tmp_path))
    objects = summary["objects_there"]
    assert (objects["cases"], objects["agreed"]) == (6, 4)
    assert (objects["false_accepts"], objects["false_refusals"]) == (1, 1)
    assert (summary["all_right"]["agreed"], summary["exact"]["agreed"]) == (1, 1)


def test_debatable_labels_are_counted_apart_and_disagreements_listed(tmp_path):
    save_labels(tmp_path, RIGHT, WRONG)
    found = describe(compare(tmp_path), VerifierSettings())
    assert found["agreement"]["all"]["pictures"] == 2
    assert found["agreement"]["a, not debatable"]["exact"]["percent"] == 100.0
    (one,) = found["disagreements"]
    assert (one["number"], one["label"]) == (1, "all right (debatable)")
    assert one["verifier"] == "no blue cross, extra green square"


def test_the_command_prints_json_and_draws_the_disagreements(tmp_path, capsys):
    save_labels(tmp_path, RIGHT, WRONG)
    sheet = tmp_path / "sheet.png"
    assert main(["--folder", str(tmp_path), "--sheet", str(sheet), "--overlap", "0.7"]) == 0
    assert json.loads(capsys.readouterr().out)["thresholds"]["overlap"] == 0.7
    assert Image.open(sheet).width > 300


def test_kappa_is_agreement_beyond_chance():
    # Observed 0.7; both say yes by chance 0.5 x 0.6, both say no 0.5 x 0.4: (0.7 - 0.5) / 0.5.
    pairs = Paired(both=20, first=5, second=10, neither=15)
    assert kappa(pairs) == pytest.approx(0.4)
    assert kappa(Paired(both=3, first=0, second=0, neither=0)) == 1.0
    assert count_agreement(pairs)["percent"] == 70.0


def test_a_label_that_does_not_fit_its_caption_is_refused():
    with pytest.raises(ValueError, match="needs 1 answers"):
        Label("shapes", "a red circle", 0, there=(True, False), extra=0, debatable=False)


def test_a_grid_of_another_size_is_refused(tmp_path):
    Image.new("RGB", (640, 64)).save(tmp_path / "pictures.png")
    with pytest.raises(ValueError, match="need 1280 x 64"):
        read_pictures(tmp_path / "pictures.png", 10)


def test_the_shipped_labels_are_complete():
    labels = read_labels(SHIPPED / "labels.json")
    asked = [
        (model, prompt.text, prompt.seed)
        for model, counts in (("shapes", (40, 40, 40)), ("shapes-mmdit", (27, 27, 26)))
        for objects, count in enumerate(counts, start=1)
        for prompt in prompts("labels", objects, count)
    ]
    assert len(labels) == 200
    assert [(label.model, label.prompt, label.seed) for label in labels] == asked
    assert len(read_pictures(SHIPPED / "pictures.png", 200)) == 200


def test_the_verifier_agrees_with_the_shipped_labels():
    found = describe(compare(SHIPPED), VerifierSettings())["agreement"]
    assert found["all"]["objects_there"]["percent"] >= 94.7
    assert found["all"]["all_right"]["percent"] >= 95.0
    assert found["all"]["exact"]["percent"] >= 95.0
    assert found["shapes"]["objects_there"]["percent"] >= 99.0
    assert found["shapes-mmdit"]["objects_there"]["percent"] >= 88.3
