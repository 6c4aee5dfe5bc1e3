"""The plan of a demo run is the same for the same tree, and says clearly when there is nothing to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sennit.cli.demo.plan import plan
from sennit.errors import UsageError


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"name = {name!r}\n", encoding="utf-8")


def test_files_are_grouped_by_directory_in_order(tmp_path: Path) -> None:
    write(tmp_path / "shop", "z.py", "a.py", "cart/b.py", "cart/a.py", "notes.txt")

    made = plan(tmp_path / "shop", files_max=100)

    assert made.title == "shop"
    assert [(package.name, [file.path for file in package.files]) for package in made.packages] == [
        ("shop", ["shop/a.py", "shop/z.py"]),
        ("shop/cart", ["shop/cart/a.py", "shop/cart/b.py"]),
    ]
    assert all(Path(file.file).is_file() for file in made.files)


def test_environments_caches_builds_hidden_folders_and_links_are_skipped(tmp_path: Path) -> None:
    skipped = (".venv", "venv", "__pycache__", "node_modules", ".git", "build", "dist")
    write(tmp_path, "kept.py", *(f"{folder}/lost.py" for folder in skipped))
    (tmp_path / "link.py").symlink_to(tmp_path / "kept.py")

    made = plan(tmp_path, files_max=100)

    assert [Path(file.file).name for file in made.files] == ["kept.py"]


def test_a_root_inside_a_skipped_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path, ".venv/lib/site-packages/click/core.py")

    made = plan(tmp_path / ".venv/lib/site-packages/click", files_max=100)

    assert [file.path for file in made.files] == ["click/core.py"]


def test_of_too_many_files_the_largest_are_kept_and_the_rest_is_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.py", "a_much_longer_name.py", "b.py", "another_long_name.py")

    made = plan(tmp_path, files_max=2)

    assert [Path(file.file).name for file in made.files] == ["a_much_longer_name.py", "another_long_name.py"]
    assert made.files_left_out == 2


def test_a_single_file_is_a_plan(tmp_path: Path) -> None:
    write(tmp_path, "pkg/one.py")

    made = plan(tmp_path / "pkg/one.py", files_max=100)

    assert [(package.name, len(package.files)) for package in made.packages] == [("pkg", 1)]
    assert made.files[0].path == "pkg/one.py"


@pytest.mark.parametrize(
    ("target", "what"),
    [("missing", "no such file or folder"), ("empty", "no Python file in"), ("notes.txt", "not a Python file")],
)
def test_nothing_to_read_says_what_why_and_how_to_go_on(tmp_path: Path, target: str, what: str) -> None:
    write(tmp_path, "notes.txt", "empty/readme.txt")

    with pytest.raises(UsageError, match=what) as caught:
        plan(tmp_path / target, files_max=100)

    assert caught.value.why
    assert caught.value.fix


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="files_max is 0"):
        plan(tmp_path, files_max=0)
