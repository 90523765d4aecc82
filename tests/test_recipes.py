import json
from dataclasses import dataclass
from typing import ClassVar

import pytest

from attnctl import registry
from attnctl.errors import RecipeError
from attnctl.recipes import Recipe
from attnctl.settings import check_number
from attnctl.technique import Technique


@dataclass(frozen=True)
class Glow(Technique):
    """Glow, for tests of recipes alone."""

    name: ClassVar[str] = "glow"
    scale: float = 3.0
    words: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        check_number("Glow", "scale", self.scale, at_least=0)


@dataclass(frozen=True, kw_only=True)
class Focus(Technique):
    """Focus, with a parameter that has no default."""

    name: ClassVar[str] = "focus"
    words: tuple[str, ...]


@pytest.fixture(autouse=True)
def two_techniques(monkeypatch):
    monkeypatch.setitem(registry._registered, "glow", Glow)
    monkeypatch.setitem(registry._registered, "focus", Focus)


@pytest.fixture
def write(tmp_path):
    def write_recipe(text, encoding="utf-8"):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode(encoding))
        return path

    return write_recipe


def problems(path):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_file(path)
    return str(caught.value).replace(str(path), "FILE").splitlines()


FULL = """\
model: shapes
prompt: a red circle and a blue square
negative: blurry
seed: 7
count: 2
steps: 25
guidance: 5
size: 64x48
scheduler: DDIMScheduler
techniques:
  - glow
  - glow: {scale: 1e-3, where: "mid:self", steps: 0-50%}
"""


def test_a_full_recipe_is_read_as_written(write):
    recipe = Recipe.from_file(write(FULL))
    assert (recipe.seed, recipe.count, recipe.steps, recipe.guidance) == (7, 2, 25, 5.0)
    assert recipe.size_px == (64, 48)
    plain, tuned = recipe.build_techniques()
    assert plain == Glow()
    assert tuned == Glow(scale=0.001, where="mid:self", steps="0-50%")


def test_a_saved_recipe_reads_back_equal(write, tmp_path):
    recipe = Recipe.from_file(write(FULL))
    assert Recipe.from_file(recipe.save(tmp_path / "again.yaml")) == recipe


@pytest.mark.parametrize(
    "prompt", ["no", "1e-3", "true", "12", "null", "~", "a: b", "- x", "# x", "é 🟦", "a\nb", ""]
)
def test_any_prompt_survives_saving(tmp_path, prompt):
    recipe = Recipe(prompt=prompt)
    assert Recipe.from_file(recipe.save(tmp_path / "a.yaml")).prompt == prompt


def test_a_json_file_is_a_recipe_too(write):
    assert Recipe.from_file(write('{"prompt": "a cat", "seed": 3}')).seed == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_windows_line_ends_and_byte_order_marks_are_accepted(write, encoding):
    assert Recipe.from_file(write("prompt: a cat\r\nseed: 3\r\n", encoding)).seed == 3


def test_every_mistake_is_reported_at_once_with_its_line(write):
    path = write(
        "prompt: a cat\nsede: 7\nsteps: 0\ncount: true\nguidance: .nan\nsize: big\n"
        "techniques:\n  - gloww\n  - glow: {scal: 2}\n  - glow: {scale: -1}\n  - focus\n  - 3\n"
    )
    assert problems(path) == [
        "FILE:2: unknown key 'sede'; did you mean 'seed' or 'scheduler' or 'size'?",
        "FILE:3: steps: input should be greater than or equal to 1, got 0",
        "FILE:4: count: input should be a valid integer, got True",
        "FILE:5: guidance: input should be a finite number, got nan",
        "FILE:6: size: 'big' is no size; write width x height in pixels, such as 512x512",
        "FILE:8: unknown technique 'gloww'; did you mean 'glow'?",
        "FILE:9: glow has no parameter 'scal'; did you mean 'scale'?",
        "FILE:10: Glow: scale=-1 must be a finite number from 0",
        "FILE:11: focus: missing 1 needed keyword-only argument: 'words'",
        "FILE:12: techniques.4: 3 is no technique; write `- pag` or `- soft-pag: {scale: 2.0}`",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty; a recipe needs at least `prompt: ...`"),
        ("- a\n- b\n", "a recipe is a list of `key: value` lines, got list"),
        ("seed: 3\n", "'prompt' is missing"),
        ("prompt: a\nprompt: b\n", "FILE:2: the key 'prompt' is there twice (first on line 1)"),
        ("prompt: !!python/object/apply:os.getcwd []\n", "FILE:1: the tag"),
        ("prompt: &a x\nnegative: *a\n", "FILE:2: YAML aliases (*a) are not allowed"),
        ("prompt: [a\n", "FILE:2:1: expected"),
        ("prompt: a\n\tseed: 3\n", "FILE:2:"),
        ("prompt: 2024\n", "FILE:1: prompt: 2024 is no text and no list of texts"),
        ("prompt: []\n", "FILE:1: prompt: [] is no text"),
        ("prompt: a\nseed: 1.5\n", "FILE:2: seed: input should be a valid integer, got 1.5"),
        ("prompt: a\nseed: -1\n", "FILE:2: seed: input should be greater than or equal to 0"),
        ("prompt: a\n? [1, 2]\n: 3\n", "FILE:2: a key must be a word"),
        ("prompt: " + "[" * 50 + "]" * 50 + "\n", "nested deeper than"),
    ],
)
def test_a_bad_file_is_explained(write, text, message):
    assert message in "\n".join(problems(write(text)))


def test_a_file_that_is_not_utf8_is_explained(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"seed: 3\nprompt: caf\xe9\n")
    assert problems(path) == ["FILE:2: not UTF-8; save the file as UTF-8"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no file .*nowhere\.yaml"):
        Recipe.from_file(tmp_path / "nowhere.yaml")


def test_words_that_old_yaml_takes_for_other_types_stay_words(write):
    recipe = Recipe.from_file(write("prompt: [no, on, 1:30, 2024-01-01]\n"))
    assert recipe.prompts == ["no", "on", "1:30", "2024-01-01"]


def test_equal_recipes_share_one_id_whatever_the_order_of_keys():
    first = Recipe.from_dict({"prompt": "a", "seed": 1, "guidance": 5})
    second = Recipe.from_dict({"guidance": 5.0, "seed": 1, "prompt": "a", "negative": None})
    assert first.id == second.id
    assert first.id != first.changed(seed=2).id
    assert json.loads(first.canonical()) == first.to_dict()


@pytest.mark.parametrize("size", ["64x48", "64X48", "64 × 48", [64, 48]])  # noqa: RUF001
def test_a_size_may_be_written_in_several_ways(size):
    assert Recipe.from_dict({"prompt": "a", "size": size}).size == "64x48"


def test_one_number_is_a_square():
    assert Recipe.from_dict({"prompt": "a", "size": 64}).size_px == (64, 64)


def test_number_keys_survive_json():
    techniques = [{"glow": {"words": [{0: 0.05, 0.5: 0.8}]}}]
    recipe = Recipe.from_dict({"prompt": "a", "techniques": techniques})
    again = Recipe.from_dict(json.loads(recipe.canonical()))
    assert again == recipe
    assert again.techniques[0].parameters["words"] == [{0: 0.05, 0.5: 0.8}]


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        Recipe(prompt="a").seed = 3


def test_keys_of_several_types_have_one_order():
    made = [
        Recipe.from_dict(
            {
                "prompt": "a cat",
                "techniques": [{"attend-and-excite": {"subjects": ["cat"], "thresholds": given}}],
            },
            name="",
        )
        for given in ({0: 0.05, "20%": 0.5}, {"20%": 0.5, 0: 0.05})
    ]
    assert made[0].canonical() == made[1].canonical()
    assert made[0].id == made[1].id
    assert '{"0":0.05,"20%":0.5}' in made[0].canonical()
