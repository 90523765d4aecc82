import json
import re

import pytest

from attnctl.batch import JobFileError, jobs_from, read_jobs
from attnctl.recipes import Recipe

TEN_MISTAKES = """\
defaults:
  steps: 0
jobs:
  - prompt: a red circle
    sed: 1
  - prompt: 12
    steps: 2
  - seed: 3
    steps: 2
  - {prompt: a, prompt: b, steps: 2}
  - prompt: a red circle
    techniques: [soft-pagg]
  - prompt: a red circle
    techniques:
      - soft-pag: {scal: 2.0}
  - prompt: a red circle
    guidance: .nan
  - prompt: a red circle
    size: huge
  - prompt: a red circle
    model: !!python/object:os.system x
  - prompt: a red circle
    scheduler: DIMScheduler
"""


@pytest.fixture
def file(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def mistakes(path, **options):
    """Line, column and text of every mistake."""
    with pytest.raises(JobFileError) as caught:
        read_jobs(path, **options)
    lines = str(caught.value).splitlines()[1:]
    found = [re.match(rf"{re.escape(str(path))}:(\d+):(\d+): (.*)", line) for line in lines]
    return [(int(one[1]), int(one[2]), one[3]) for one in found]


def listed(jobs):
    return [(job.prompt, job.seed, job.id) for job in jobs.jobs]


def test_ten_mistakes_are_told_with_their_lines_and_nothing_is_loaded(
    run, file, tmp_path, monkeypatch
):
    monkeypatch.setattr("attnctl.load_pipeline", lambda *_args, **_kwargs: pytest.fail("loaded"))
    path = file("jobs.yaml", TEN_MISTAKES)
    ran = run("batch", path, "--out", tmp_path / "out")
    assert ran.code == 2
    assert not (tmp_path / "out").exists()
    places = re.findall(r"jobs\.yaml:(\d+):(\d+): ", ran.err)
    assert places == [
        ("2", "3"), ("5", "5"), ("6", "5"), ("8", "5"), ("10", "17"), ("12", "18"),
        ("15", "9"), ("17", "5"), ("19", "5"), ("21", "12"), ("23", "5"),
    ]  # fmt: skip
    for text in (
        "steps: ", "unknown key 'sed'", "12 is no text", "'prompt' is missing", "there twice",
        "unknown technique 'soft-pagg'; did you mean 'soft-pag'", "no parameter 'scal'",
        "guidance: ", "'huge' is no size", "python/object", "did you mean 'DDIMScheduler'",
    ):  # fmt: skip
        assert text in ran.err
    assert "Traceback" not in ran.err


def test_mistakes_in_jsonl_have_line_and_column(file):
    path = file(
        "jobs.jsonl",
        '{"prompt": "a", "sed": 1}\n\nnot json\n{"prompt": "a", "seed": 1, "seed": 2}\n'
        '{"prompt": "a", "guidance": NaN}\n[1]\n{"prompt": "a", "seed": true}\n',
    )
    found = mistakes(path)
    assert [(line, column) for line, column, _ in found] == [
        (1, 17), (3, 1), (4, 28), (5, 1), (6, 1), (7, 17),
    ]  # fmt: skip
    assert "twice" in found[2][2]
    assert "NaN" in found[3][2]


def test_mistakes_in_csv_have_line_and_column(file):
    path = file(
        "jobs.csv",
        'prompt,seed,techniques,colour\n"a, b",x,,\na,1\n"a\nb",2,soft-pagg,\na,1.5,pag:scale,\n',
    )
    found = mistakes(path)
    assert [(line, column) for line, column, _ in found] == [
        (1, 24), (2, 8), (3, 1), (5, 6), (6, 3), (6, 7),
    ]  # fmt: skip
    assert "unknown column 'colour'" in found[0][2]
    assert "2 cells for 4 columns" in found[2][2]


def test_a_missing_column_is_told_once(file):
    found = mistakes(file("jobs.csv", "seed\n1\n2\n3\n"))
    assert found == [(1, 1, "'prompt' is missing")]


def test_three_formats_and_any_order_give_the_same_ids(file):
    yaml = file(
        "jobs.yaml",
        "- {prompt: 'a, b', seed: 1, techniques: [soft-pag: {scale: 2.0, where: mid:self}]}\n"
        "- {prompt: c, seed: 2, guidance: 5}\n",
    )
    jsonl = file(
        "jobs.jsonl",
        '{"guidance": 5.0, "seed": 2, "prompt": "c"}\n'
        '{"techniques": [{"soft-pag": {"where": "mid:self", "scale": 2.0}}], "seed": 1, '
        '"prompt": "a, b"}\n',
    )
    csv = file(
        "jobs.csv",
        'guidance,prompt,seed,techniques\n,"a, b",1,"soft-pag:scale=2.0,where=mid:self"\n5,c,2,\n',
    )
    first = sorted(listed(read_jobs(yaml)))
    assert first == sorted(listed(read_jobs(jsonl))) == sorted(listed(read_jobs(csv)))


def test_an_id_begins_like_that_of_the_recipe():
    jobs = jobs_from([{"prompt": "a", "seed": 3, "count": 2, "steps": 5}])
    recipe = Recipe.from_dict({"prompt": "a", "seed": 4, "steps": 5})
    assert jobs.jobs[1].id.startswith(recipe.id)
    assert jobs.recipe(jobs.jobs[1]) == recipe


def test_bom_and_crlf_are_read(file):
    rows = ["prompt,seed", "a,1", "b,2", ""]
    marked = read_jobs(file("jobs.csv", b"\xef\xbb\xbf" + "\r\n".join(rows).encode()))
    plain = read_jobs(file("plain.csv", "\n".join(rows)))
    assert listed(marked) == listed(plain)
    text = '{"prompt": "a", "seed": 1}\r\n'
    assert listed(read_jobs(file("j.jsonl", b"\xef\xbb\xbf" + text.encode()))) == listed(plain)[:1]
    text = "- prompt: a\r\n  seed: 1\r\n"
    assert listed(read_jobs(file("j.yaml", b"\xef\xbb\xbf" + text.encode()))) == listed(plain)[:1]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "", "empty"),
        ("b.jsonl", "\n\n", "empty"),
        ("c.csv", "prompt\n", "empty"),
        ("d.jsonl", b'{"prompt": "\xff"}', "not UTF-8"),
        ("e.yaml", b"- prompt: \xff", "not UTF-8"),
        ("f.csv", 'prompt\n"a', "not CSV"),
        ("g.csv", "prompt;seed\na;1\n", "commas"),
        ("h.csv", "prompt,prompt\na,b\n", "twice"),
        ("i.yaml", "a: &x [1]\njobs: *x", "aliases"),
        ("j.yaml", "- prompt: [" + "[" * 40 + "]" * 40 + "]", "nested deeper"),
        ("k.yaml", "- prompt: a\n   seed: 1\n", "not YAML"),
        ("l.yaml", "prompt: a\n", "unknown key 'prompt' beside `jobs:`"),
        ("m.yaml", "jobs: 3\n", "must be a list"),
        ("n.yaml", "jobs: [{prompt: a}]\ndefaults: {seed: 1}\n", "must stand above"),
        ("o.jsonl", '{"prompt": "\\ud800"}', "prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"defaults": {"seed": 1}}', "before all jobs"),
        ("q.yaml", "- {prompt: a, seed: 9223372036854775807, count: 2}", "too large"),
        ("r.yaml", "- {prompt: a, size: 100x100}", "multiples of 8"),
        ("s.jsonl", "[" * 100_000, "not JSON"),
        ("t.yaml", f"- {{prompt: a, seed: {'9' * 5000}}}", "too many digits"),
    ],
)
def test_a_broken_file_is_told_with_a_line(file, name, text, says):
    found = mistakes(file(name, text))
    assert any(says in text for _, _, text in found), found


def test_a_word_that_a_technique_needs_must_be_in_the_prompt(file):
    path = file(
        "jobs.yaml",
        "defaults:\n  techniques: [attend-and-excite: {subjects: [circle]}]\n"
        "jobs:\n- prompt: a red circle\n- prompt: a blue square\n",
    )
    ((line, column, text),) = mistakes(path)
    assert (line, column) == (5, 3)
    assert "'circle'" in text


def test_an_unknown_kind_of_file_and_a_missing_one_are_told(file, tmp_path):
    for path in (file("jobs.txt", "a"), tmp_path / "none.yaml"):
        with pytest.raises(JobFileError, match=re.escape(str(path))):
            read_jobs(path)


def test_a_matrix_makes_every_combination(file):
    path = file(
        "jobs.yaml",
        "defaults: {techniques: [soft-pag: {where: mid:self}]}\n"
        "matrix: {seed: [1, 2, 3], soft-pag.scale: [1.0, 2.0]}\n"
        "jobs:\n- prompt: a\n- {prompt: b, matrix: {seed: [7]}}\n",
    )
    jobs = read_jobs(path)
    made = [
        (job.prompt, job.seed, jobs.recipe(job).build_techniques()[0].scale) for job in jobs.jobs
    ]
    assert made == [
        ("a", 1, 1.0), ("a", 1, 2.0), ("a", 2, 1.0), ("a", 2, 2.0), ("a", 3, 1.0), ("a", 3, 2.0),
        ("b", 7, 1.0), ("b", 7, 2.0),
    ]  # fmt: skip


def test_a_matrix_alone_is_a_job(file):
    jobs = read_jobs(file("jobs.yaml", "matrix: {prompt: [a, b], seed: [1, 2]}\n"))
    assert [(job.prompt, job.seed) for job in jobs.jobs] == [
        ("a", 1), ("a", 2), ("b", 1), ("b", 2),
    ]  # fmt: skip


def test_mistakes_in_a_matrix_point_at_it(file):
    path = file(
        "jobs.yaml",
        "matrix:\n  seed: [1, -2]\n  steps: 5\n  seg.blur: [1]\njobs:\n- {prompt: a, seed: 3}\n",
    )
    found = mistakes(path)
    assert [line for line, _, _ in found] == [2, 3, 4, 6]


def test_a_matrix_of_millions_is_refused(file):
    listed_ = list(range(1100))
    path = file(
        "jobs.jsonl", json.dumps({"prompt": "a", "matrix": {"seed": listed_, "steps": listed_}})
    )
    assert "combinations" in mistakes(path)[0][2]


def test_a_file_of_defaults_serves_a_csv_file(file):
    defaults = file("all.yaml", "defaults: {steps: 5}\nmatrix: {seed: [1, 2]}\n")
    jobs = read_jobs(file("jobs.csv", "prompt\na\n"), defaults=defaults)
    assert [(job.seed, jobs.recipe(job).steps) for job in jobs.jobs] == [(1, 5), (2, 5)]


def test_rows_without_a_seed_get_one_that_does_not_depend_on_order():
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    jobs = listed(jobs_from(rows))
    assert len({job[1] for job in jobs}) == 3
    assert sorted(jobs) == sorted(listed(jobs_from(rows[::-1])))


def test_the_same_picture_is_listed_once():
    jobs = jobs_from([{"prompt": "a", "seed": 1, "count": 2}, {"prompt": "a", "seed": 2}])
    assert len(jobs.jobs) == 2
    assert jobs.repeats == 1


def test_many_mistakes_are_counted(file):
    path = file("jobs.jsonl", "".join(f'{{"prompt": "a", "k{i}": 1}}\n' for i in range(500)))
    with pytest.raises(JobFileError, match="500 mistakes") as caught:
        read_jobs(path)
    assert "and 300 more" in str(caught.value)
