"""Chips and slices by name."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orca_jax.planning import chips

OFFERED = [
    (chip.name, count) for chip in chips.chips().values() if chip.torus for count in chips.SLICES[chip.torus]
]


def test_every_chip_has_its_facts_and_a_source():
    assert set(chips.chips()) == {"v4", "v5e", "v5p", "v6e", "a100", "h100", "h200"}
    for chip in chips.chips().values():
        assert chip.source.startswith(("https://", "NVIDIA"))
        assert chip.peak > 1e14
        assert chip.hbm_bytes > 15 * 2**30
        assert 0 < chip.product_efficiency < 1
        assert (
            (chip.node_chips > 0) == (chip.network_gb_per_s > 0) == (chip.kind == "gpu") == (not chip.torus)
        )


@pytest.mark.parametrize(
    ("name", "shown", "count"),
    [
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5p-64", "v5p:2x4x4", 32),
        ("v5p-8", "v5p:2x2x1", 4),
        ("v5p-12288", "v5p:16x16x24", 6144),
        ("v4-128", "v4:4x4x4", 64),
        ("v5e-256", "v5e:16x16", 256),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v6e-32", "v6e:4x8", 32),
        ("V5P:2x4x4", "v5p:2x4x4", 32),
        ("h100-8", "h100:8", 8),
        ("a100-20", "a100:20", 20),
        ("h200:16", "h200:16", 16),
    ],
)
def test_names_of_slices(name, shown, count):
    found = chips.topology(name)
    assert (found.name, found.chips) == (shown, count)


@given(st.sampled_from(OFFERED))
def test_an_offered_slice_is_found_by_its_shape_and_by_its_cloud_name(offered):
    name, count = offered
    chip = chips.chips()[name]
    by_cloud_name = chips.topology(f"{name}-{count * chip.cores}")
    assert by_cloud_name == chips.topology(by_cloud_name.name)
    assert by_cloud_name.chips == count == math.prod(by_cloud_name.shape)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v9-8", "a chip of v4, v5e"),
        ("v5p", "write CHIP:SHAPE"),
        ("v5p-127", "count TensorCores, 2 a chip"),
        ("v5p-96", "no slice of 48 chips; known: 4, 8"),
        ("v5e-512", "no slice of 512 chips"),
        ("v5p:4x4", "have 3 dimensions"),
        ("v5e:4x4x4", "have 2 dimensions"),
        ("h100-0", "1 a chip"),
        ("v5p:0x4x4", "none of them 0"),
    ],
)
def test_what_is_wrong_with_a_name_is_said(name, words):
    with pytest.raises(ValueError, match=words) as refused:
        chips.topology(name)
    assert repr(name) in str(refused.value)


@pytest.mark.parametrize(
    ("name", "closed"), [("v5p:2x4x4", False), ("v5p:4x4x8", True), ("v5e-256", True), ("v5e-128", False)]
)
def test_rings_close_on_whole_cubes_and_whole_pods(name, closed):
    assert chips.topology(name).wrapped == closed


@pytest.mark.parametrize(
    ("name", "mesh", "taken"),
    [
        ("v5p:2x4x4", (1, 32, 1), True),
        ("v5p:2x4x4", (2, 4, 4), True),
        ("v5p:2x4x4", (1, 8, 4), True),
        ("v5p:4x4x4", (1, 32, 2), False),
        ("v6e-256", (1, 64, 4), False),
        ("v6e-256", (1, 16, 16), True),
        ("v5e-256", (1, 64, 4), True),
        ("h100-24", (1, 12, 2), True),
    ],
)
def test_meshes_that_a_torus_takes(name, mesh, taken):
    """As jax.make_mesh refuses to split a dimension; tests/proofs/test_plan.py holds this against JAX."""
    assert chips.topology(name).takes(mesh) == taken


def test_larger_slices_come_in_order():
    counts = [there.chips for there in chips.larger(chips.topology("v5p:2x4x4"))]
    assert counts == sorted(counts)
    assert counts[0] == 64
    assert chips.larger(chips.topology("h100-8"))[0].name == "h100:16"


def test_prices_are_the_users(tmp_path):
    v5p = chips.chips()["v5p"]
    assert chips.price(v5p) is None
    path = tmp_path / "mine.csv"
    path.write_text("chip,usd_per_chip_hour\nv5p,4.5\n")
    assert chips.price(v5p, path) == 4.5
    assert chips.price(chips.chips()["v4"], path) is None
    for text in ("chip,usd_per_chip_hour\nv5p,cheap\n", "chip,price\nv5p,4\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"mine\.csv"):
            chips.price(v5p, path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)  # fmt: skip
def test_devices_are_known_by_what_jax_calls_them(kind, name):
    assert chips.of_device(kind) == chips.chips()[name]


def test_other_devices_are_not_known():
    assert chips.of_device("cpu") is None
