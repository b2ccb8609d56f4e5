"""What a compiled step sends, and what is said where none can be; tests/proofs/test_plan.py has the rest."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from orca_jax.config import MeshConfig
from orca_jax.planning import chips, compile
from orca_jax.planning.estimate import MeshShape
from orca_jax.student import sharding
from tests.planning.workloads import small

TOO_LARGE = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 26.91G of 15.48G hbm. Exceeded hbm capacity by 11.43G.

Total hbm usage >= 27.43G:
"""

TEMPORARIES = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory \
required for HLO temporaries (23.40G) exceeds available HBM (15.75G). HLO module: jit_update.
"""


def test_gpus_are_estimated_only():
    with pytest.raises(compile.PlanError, match="--analytic"):
        compile.compile_step(small(), MeshShape(1, 8, 1), chips.topology("h100-8"), state_bytes=0)


def test_a_missing_compiler_is_named_with_its_extra(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a)
    )
    with pytest.raises(compile.PlanError, match=r"pip install -e '\.\[tpu\]', or add --analytic"):
        compile.compile_step(small(rows=32), MeshShape(1, 32, 1), chips.topology("v5p:2x4x4"), state_bytes=0)


def test_rows_are_checked_before_anything_is_compiled():
    with pytest.raises(ValueError, match="does not divide"):
        compile.compile_step(small(rows=3), MeshShape(1, 32, 1), chips.topology("v5p:2x4x4"), state_bytes=0)


def test_the_compilers_refusal_is_read():
    found = compile.too_large(TOO_LARGE, 7, 1.0)
    assert (found.fits, found.total) == (False, int(26.91 * 2**30))
    beside = compile.too_large(TEMPORARIES, 7, 1.0)
    assert (beside.fits, beside.total) == (False, int(23.40 * 2**30) + 7)


def test_another_refusal_is_passed_on():
    with pytest.raises(compile.PlanError, match="does not compile: INTERNAL: something else"):
        compile.too_large("INTERNAL: something else\nmore", 7, 1.0)


SHAPE = MeshShape(1, 4, 2)
TEXT = """HloModule jit_update, is_scheduled=true

%fused (input: f32[64]) -> f32[16] {
  %input = f32[64]{0} parameter(0)
  ROOT %scatter = f32[16]{0} reduce-scatter(%input), replica_groups=mesh['a'=4,'b'=2] {'a'}
}

%start (x: bf16[8]) -> bf16[16] {
  ROOT %gathered = bf16[16]{0} all-gather(%x.1), channel_id=7, replica_groups=[4,2]<=[8]
}

%done (x.2: bf16[8]) -> bf16[16] {
  ROOT %gathered.1 = bf16[16]{0} all-gather(%x.2), channel_id=7, replica_groups=[4,2]<=[8]
}

%condition (state: (s32[], bf16[8])) -> pred[] {
  %limit = s32[] constant(16)
  %state = (s32[], bf16[8]{0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

%c (state.2: (s32[], bf16[8])) -> pred[] {
  ROOT %done = pred[] parameter(0)
}

%ring (state.1: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %two = s32[] constant(2)
  %state.1 = (s32[], bf16[8]{0}) parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  %sent = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,6}}
  %arrived = bf16[8]{0} collective-permute-done(%sent)
  %next = s32[] add(%counter.1, %two)
  ROOT %tuple.1 = (s32[], bf16[8]{0}) tuple(%next, %arrived)
}

%body (arg: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %all-gather.1 = bf16[4,8]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0)
  %all-reduce.1 = bf16[8]{0} all-reduce(%y), replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  %fusion.1 = f32[16]{0} fusion(%z), kind=kCustom, calls=%fused
  %async-collective-start = bf16[16]{0} fusion(%x), kind=kCustom, calls=%start
  %async-collective-done = bf16[16]{0} fusion(%x), kind=kCustom, calls=%done
  %while.2 = (s32[], bf16[8]) while(%u), condition=%condition, body=%ring
}

ENTRY %main (p: bf16[8]) -> bf16[8] {
  %while.1 = (s32[], bf16[8]) while(%t), condition=%c, body=%body, config={"known_trip_count":{"n":"10"}}
  %alone = f32[] all-reduce(%s), replica_groups=[8,1]<=[8], to_apply=%add
}
"""


def by_kind(found):
    return {(one.kind, one.axes): (one.times, one.sent) for one in found}


def test_loops_groups_and_scatters_are_read():
    assert by_kind(compile.collectives(TEXT, SHAPE)) == {
        ("all-gather", ("fsdp",)): (10, 10 * 64 * 3 // 4),
        ("all-gather", ("tensor",)): (10, 10 * 32 // 2),
        ("all-reduce", ("tensor",)): (10, 10 * 16),
        ("reduce-scatter", ("fsdp",)): (10, 10 * 256 * 3 // 4),
        ("collective-permute", ("fsdp",)): (10 * 8, 10 * 8 * 16),
    }


def test_a_loop_of_unknown_length_counts_once_and_is_reported(caplog):
    text = TEXT.replace("direction=LT", "direction=GT")
    assert by_kind(compile.collectives(text, SHAPE))["collective-permute", ("fsdp",)] == (10, 10 * 16)
    assert "counted once" in caplog.text


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        compile.collectives("HloModule empty\n", SHAPE)


@given(st.sampled_from([("fsdp", 4, 2, "[2,4]<=[4,2]T(1,0)"), ("tensor", 2, 1, "[4,2]<=[8]")]))
def test_groups_in_short_form(case):
    axis, size, step, text = case
    members = compile.group(f"replica_groups={text}, to_apply")
    assert members == tuple(range(0, size * step, step))
    assert compile.varying(members, SHAPE) == (axis,)


def test_a_compiled_program_says_what_its_loop_sends():
    """Five sums over the tensor axis in a scan: a ring of two sends each sum once."""
    mesh = sharding.make_mesh(MeshConfig(fsdp=4, tensor=2))

    def place(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def run(weights, x):
        def layer(x, weight):
            x = jax.lax.with_sharding_constraint(x, place("fsdp", "tensor"))
            return jax.lax.with_sharding_constraint(jnp.tanh(x @ weight), place("fsdp", None)), None

        return jax.lax.scan(layer, x, weights)[0]

    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=place(None, "tensor", None))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=place("fsdp", None))
    text = jax.jit(run).lower(weights, x).compile().as_text()
    assert by_kind(compile.collectives(text, SHAPE)) == {("all-reduce", ("tensor",)): (5, 5 * 2 * 64 * 4)}
