import pytest

from cpsim.config import catalog


@pytest.fixture
def package(tmp_path, monkeypatch):
    package = tmp_path / "cpsim"
    package.mkdir()
    monkeypatch.setattr(catalog, "_PACKAGE", package)
    return package


def add(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("")


def test_packaged_content_comes_first(package):
    add(package / "_content" / "scenarios", "inside.toml", "README.md")
    add(package.parent / "scenarios", "beside.toml")
    (package.parent / "pyproject.toml").write_text("")
    assert catalog.scenario_names() == ["inside"]
    assert catalog.find_scenario("inside") == package / "_content" / "scenarios" / "inside.toml"


def test_a_checkout_has_it_beside_the_package(package):
    add(package.parent / "scenarios", "beside.toml")
    (package.parent / "pyproject.toml").write_text("")
    assert catalog.scenario_names() == ["beside"]


def test_a_neighbour_that_is_no_checkout_is_not_taken(package):
    add(package.parent / "scenarios", "somebody-elses.toml")
    with pytest.raises(catalog.NotFound, match="installed without its scenarios"):
        catalog.scenario_names()


def test_unknown_names_get_a_suggestion_and_the_list():
    with pytest.raises(
        catalog.NotFound, match=r'no scenario "smok": .* one of .*challenge, .*smoke, .*; did you mean "smoke"'
    ):
        catalog.find_scenario("smok")


@pytest.mark.parametrize("path", ["no/such", "nothing.toml", "nothing.swf.gz", "./smoke"])
def test_a_missing_path_is_no_name(path):
    with pytest.raises(catalog.NotFound, match="no such file"):
        catalog.find_scenario(path)


def test_a_file_without_suffix_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("")
    monkeypatch.chdir(tmp_path)
    assert catalog.find_scenario("mine").name == "mine"


def test_reports_are_found_alike(package):
    add(package / "_content" / "reports", "users.py", "README.md")
    assert catalog.names("reports") == ["users"]
    assert catalog.find("reports", "users").name == "users.py"
    with pytest.raises(catalog.NotFound, match='no report "user"'):
        catalog.find("reports", "user")
