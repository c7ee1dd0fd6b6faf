"""Files and recipes that a person brings: where they are kept, under what name, what is refused."""

from pathlib import Path

import pytest

from tools import BadInput
from tools.board import choice, drafts, uploads
from tools.board.board import Board, Form
from tools.board.choice import Choice
from tools.board.runs import Work
from tools.board.serve import texts
from tools.core import run_folder
from tools.recipes import recipe

CHOSEN = Choice("smollm2-135m", "lora", "tier cpu")
GENERATED = recipe.RECIPES / "cpu" / "smollm2-135m-lora.yaml"


@pytest.fixture(autouse=True)
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An outputs folder of the test's own."""
    monkeypatch.setenv("REACT_RECIPES_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


def came_in(name: str, data: bytes = b"{}\n") -> Path:
    """A file as Gradio puts it down: in a folder of its own."""
    path = uploads.incoming() / "0123" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("my.jsonl", "my.jsonl"),
        ("my data (2).jsonl", "my-data-2-.jsonl"),
        ("<img src=x onerror=alert(1)>.jsonl", "img-src-x-onerror-alert-1-.jsonl"),
        ("-rf.jsonl", "rf.jsonl"),
        (".hidden.jsonl", "hidden.jsonl"),
        ("数据.jsonl", "数据.jsonl"),
        (f"{'a' * 200}.jsonl", f"{'a' * 114}.jsonl"),
    ],
)
def test_a_dropped_file_is_kept_under_a_plain_name(outputs: Path, name: str, kept: str) -> None:
    path = came_in(name)
    assert uploads.keep(path) == outputs / "board" / "data" / kept
    assert uploads.there()[-1] == str(outputs / "board" / "data" / kept)
    assert not path.parent.exists()


@pytest.mark.parametrize("name", ["../../up.jsonl", "..\\..\\up.jsonl", "/etc/up.jsonl"])
def test_a_name_leads_nowhere(name: str) -> None:
    assert uploads.plain(name) == "up.jsonl"


def test_a_second_file_of_the_same_name_takes_its_place() -> None:
    uploads.keep(came_in("my.jsonl", b"a\n"))
    assert uploads.keep(came_in("my.jsonl", b"b\n")).read_bytes() == b"b\n"


def test_what_is_no_dropped_file_or_no_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.jsonl").write_text("{}")
    with pytest.raises(BadInput, match="not a file that was dropped here"):
        uploads.keep(tmp_path / "secret.jsonl")
    link = came_in("x.jsonl").with_name("link.jsonl")
    link.symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(BadInput, match="not a file that was dropped here"):
        uploads.keep(link)
    with pytest.raises(BadInput, match=r"page.html: no file of episodes \(.json, "):
        uploads.keep(link.with_name("x.jsonl").rename(link.with_name("page.html")))
    monkeypatch.setattr(uploads, "MOST", 3)
    big = link.with_name("big.jsonl")
    big.write_bytes(b"1234")
    with pytest.raises(BadInput, match=r"big.jsonl: .* command line"):
        uploads.keep(big)
    assert (tmp_path / "secret.jsonl").exists() and not (uploads.folder() / "data").exists()


def test_a_bad_file_is_told_with_its_line() -> None:
    good = (run_folder.ROOT / "data" / "test.jsonl").read_bytes().splitlines(keepends=True)[:2]
    path = str(uploads.keep(came_in("my.jsonl", b"".join([*good, b'{"messages": 1}\n']))))
    assert f"{path}:3: error: unreadable" in uploads.lint(path)
    assert uploads.measure(path) is None


@pytest.mark.parametrize(("data", "own"), [("/etc/passwd", ""), ("", "/etc/my.yaml"), ("data/../x.jsonl", "")])
def test_only_what_the_page_offers_is_taken(data: str, own: str) -> None:
    form = Form("smollm2-135m", "lora", "tier cpu", data, own, "Q8_0", 1, "", "my", False)
    with pytest.raises(BadInput, match="of this board"):
        Board(texts("en"), Work()).commands(form)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "-x", "x" * 81, "x\n", "smollm2-135m-lora"])
def test_a_name_that_no_copy_can_have_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="no name for a recipe|another one"):
        drafts.save(GENERATED.read_text(), name, CHOSEN)


def test_a_recipe_is_saved_as_a_copy_with_its_own_name(outputs: Path) -> None:
    before = GENERATED.read_text()
    path = drafts.save(before.replace("lora_r: 16", "lora_r: 8"), "my", CHOSEN)
    assert path == outputs / "board" / "cpu" / "my.yaml" and GENERATED.read_text() == before
    saved = recipe.read_recipe(path)
    assert (saved.tier.key, saved.run.folder, saved.settings["lora_r"]) == ("cpu", outputs / "cpu" / "my", 8)
    assert f"RECIPE={path}" in saved.text and "# hash" not in saved.text
    assert drafts.there("cpu") == [str(path)]
    # The one that is chosen is replaced, another one is not.
    with pytest.raises(BadInput, match="is there already"):
        drafts.save(before, "my", CHOSEN)
    own = Choice("smollm2-135m", "lora", "tier cpu", own=choice.shown(path))
    assert "lora_r: 16" in drafts.save(before, "my", own).read_text()


def test_what_is_no_recipe_is_not_saved(outputs: Path) -> None:
    for text in ("", "- 1", "base_model: [", "base_model: x\nbase_model: y", "a: &a [*a]", "base_model: x" * 30000):
        with pytest.raises(BadInput, match=r"my.yaml"):
            drafts.save(text, "my", CHOSEN)
    assert not (outputs / "board").exists()


def test_what_is_typed_is_checked_with_its_line() -> None:
    text = GENERATED.read_text().replace("lora_r: 16", "lora_rr: 16")
    line = text.splitlines().index("lora_rr: 16") + 1
    path = drafts.place("my", "cpu")
    assert [*drafts.check(text, path, "")] == [f"{path}:{line}: lora_rr: no such key; did you mean lora_r?"]
