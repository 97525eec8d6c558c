"""Names and paths: one to one, never an array that is also a group, never a name that Zarr reserves."""

from hypothesis import given, settings
from hypothesis import strategies as st

from datastates.zarr.hierarchy import children_of, groups_of, node_paths

names = st.lists(st.text("ab._/%é", max_size=6), max_size=8, unique=True)


@settings(deadline=None)
@given(names)
def test_any_names_have_paths_of_their_own(given_names: list[str]) -> None:
    paths = node_paths(given_names)
    assert list(paths) == given_names
    assert len(set(paths.values())) == len(paths)
    groups = groups_of(paths.values())
    assert not groups & set(paths.values())
    for path in paths.values():
        for part in path.split("/"):
            assert part
            assert not part.startswith("__")
            assert set(part) != {"."}


def test_dots_are_groups() -> None:
    paths = node_paths(["model.layers.0.weight", "note"])
    assert paths == {"model.layers.0.weight": "model/layers/0/weight", "note": "note"}
    assert groups_of(paths.values()) == {"", "model", "model/layers", "model/layers/0"}
    assert children_of(groups_of(paths.values()), paths.values())[""] == ["model", "note"]


def test_what_cannot_be_a_node_is_encoded() -> None:
    paths = node_paths(["a", "a.b", "a._self", "__init__.x", "x/y", "p..q"])
    assert list(paths.values()) == ["a/_self_", "a/b", "a/_self", "%5F_init__/x", "x%2Fy", "p/%/q"]
