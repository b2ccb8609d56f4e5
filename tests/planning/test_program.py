"""What a compiled program's text says: transfers, the compiler's cycles, kernels and launches."""

import logging
import re

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from orca_jax.config import MeshConfig
from orca_jax.planning import program
from orca_jax.planning.estimate import MeshShape
from orca_jax.student import sharding

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
    assert by_kind(program.collectives(TEXT, SHAPE)) == {
        ("all-gather", ("fsdp",)): (10, 10 * 64 * 3 // 4),
        ("all-gather", ("tensor",)): (10, 10 * 32 // 2),
        ("all-reduce", ("tensor",)): (10, 10 * 16),
        ("reduce-scatter", ("fsdp",)): (10, 10 * 256 * 3 // 4),
        ("collective-permute", ("fsdp",)): (10 * 8, 10 * 8 * 16),
    }


def test_a_started_scatter_carries_its_operand_before_its_result():
    started = (
        "((f32[64]{0}), f32[16]{0}) reduce-scatter-start(%input), replica_groups=mesh['a'=4,'b'=2] {'a'}"
    )
    text = re.sub(r"f32\[16\]\{0\} reduce-scatter\(.*", lambda _: started, TEXT)
    assert text != TEXT
    assert program.collectives(text, SHAPE) == program.collectives(TEXT, SHAPE)


def test_a_loop_of_unknown_length_counts_once_and_is_reported(caplog):
    text = TEXT.replace("direction=LT", "direction=GT")
    assert by_kind(program.collectives(text, SHAPE))["collective-permute", ("fsdp",)] == (10, 10 * 16)
    assert "counted once" in caplog.text


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        program.collectives("HloModule empty\n", SHAPE)


@given(st.sampled_from([("fsdp", 4, 2, "[2,4]<=[4,2]T(1,0)"), ("tensor", 2, 1, "[4,2]<=[8]")]))
def test_groups_in_short_form(case):
    axis, size, step, text = case
    members = program.group(f"replica_groups={text}, to_apply")
    assert members == tuple(range(0, size * step, step))
    assert program.varying(members, SHAPE) == (axis,)


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
    assert by_kind(program.collectives(text, SHAPE)) == {("all-reduce", ("tensor",)): (5, 5 * 2 * 64 * 4)}


# Cycles, kernels and launches

# In the form of libtpu's text after code generation, of a step of three layers on v5e:2x2.
GENERATED = """HloModule jit_update, is_scheduled=true

%fused (p: bf16[4,8]) -> bf16[4,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  ROOT %e = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} exponential(%p)
}

%condition (state: (s32[], bf16[8])) -> pred[] {
  ROOT %done = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%layer (state.1: (s32[], bf16[8])) -> (s32[], bf16[8]) {
  %state.1 = (s32[], bf16[8]{0}) parameter(0)
  %fusion.1 = bf16[4,8]{1,0} fusion(%x), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"2663"}}
  %copy-start.1 = (bf16[8]{0}, bf16[8]{0}, u32[]{:S(2)}) copy-start(%y), backend_config={"dma_priority":1}
  %copy-done.1 = bf16[8]{0} copy-done(%copy-start.1)
  %splash_mha_fwd_segmented.2 = (f32[4,512,128]{2,1,0:T(8,128)}, bf16[4,4,512,128]{3,2,1,0:T(8,128)(2,1)S(1)}) custom-call(%a, %q, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,1]{2,1,0}, bf16[4,4,512,128]{3,2,1,0}, bf16[4,2,512,128]{3,2,1,0}}
  %splash_mha_dkv_segmented.1 = (bf16[4,2,512,128]{3,2,1,0}, bf16[4,2,512,128]{3,2,1,0}) custom-call(%a, %q, %k), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1,1]{2,1,0}, bf16[4,4,512,128]{3,2,1,0}, bf16[4,2,512,128]{3,2,1,0}}
  ROOT %tuple.1 = (s32[], bf16[8]{0}) tuple(%next, %copy-done.1)
}

ENTRY %main (p.1: bf16[8]) -> bf16[8] {
  %while.1 = (s32[], bf16[8]) while(%t), condition=%condition, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %convert.1 = f32[8]{0} convert(%while.1), backend_config={"window_config":{"estimated_cycles":"100"}}
}
"""  # noqa: E501
PRODUCT = 4 * 4 * 512 * 512 * 128  # FLOPs of one of attention's products, half masked


def test_cycles_are_summed_over_loops():
    assert program.work(GENERATED).cycles == 3 * 2663 + 100


def test_attention_kernels_have_no_cycles_and_are_counted_by_their_products():
    """A backward kernel without a second one makes all three gradients, in five products."""
    found = program.work(GENERATED)
    assert found.kernels == {"tpu_custom_call": 6}
    assert found.attention == 3 * (2 + 5) * PRODUCT
    apart = GENERATED.replace("ROOT %tuple.1", "%splash_mha_dq_segmented.1 = f32[2]{0} custom-call(%q), "
        'custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[4,4,512,128]{3,2,1,0}}\n'
        "  ROOT %tuple.1")  # fmt: skip
    assert program.work(apart).attention == 3 * (2 + 4 + 3) * PRODUCT


def test_the_kernel_of_a_single_row_has_no_axis_of_rows():
    text = GENERATED.replace(
        "bf16[4,4,512,128]{3,2,1,0}, bf16[4,2,512,128]{3,2,1,0}}", "bf16[4,512,128]{2,1,0}}"
    )
    assert program.work(text).attention == 3 * (2 + 5) * PRODUCT / 4


def test_another_kernel_is_said_not_to_be_counted(caplog):
    with caplog.at_level(logging.WARNING):
        assert program.work(GENERATED.replace("splash_mha_fwd", "ragged_dot")).attention == 3 * 5 * PRODUCT
    assert "ragged_dot_segmented.2" in caplog.text


def test_launches_are_of_what_runs_outside_fusions():
    """A layer's fusion, copy and two kernels, three times, and the conversion after them."""
    assert program.work(GENERATED).launches == 3 * 4 + 1
