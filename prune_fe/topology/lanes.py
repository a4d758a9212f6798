"""Vectors of integers for the compiled functions: each lane of a vector register usually holds a number of another map.

The functions here are vector instructions, which LLVM splits where the processor's registers are shorter. Loops over
lanes would be slower: LLVM would keep intermediate results in memory, and test before each loop whether arrays overlap;
and slicing an array counts its references, which takes as long as many numbers. `set_bits` and `trailing_zeros` are
instructions for sets of lanes or vertices, whose members are the bits of a word.
"""

# mypy: disable-error-code="no-untyped-def"
# The functions that numba compiles, and the callbacks that it calls, have no types for mypy.

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.datamodel import models

intrinsic: Any = extending.intrinsic  # mypy takes its first argument, the compiler's own, for one that callers give

N_LANES = {16: 32, 32: 16, 64: 8}
"""Bits of a number -> lanes of a vector: 64 bytes, the longest registers and a line of the cache."""

LOWEST_LEVEL, HIGHEST_LEVEL = -32767, 32766
"""The levels of `levels_between`. The smallest and the largest integer of 16 bits are the level of no key."""


class Lanes(types.Type):
    """The numba type of a vector of integers."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.n = N_LANES[dtype.bitwidth]
        super().__init__(name=f"Lanes({dtype})")


@extending.register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Represents Lanes as a vector of LLVM."""

    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, ir.VectorType(ir.IntType(kind.dtype.bitwidth), kind.n))


@intrinsic
def address_of(_, array):
    """Return the address of an array's first number; passing it costs nothing, an array counts its references."""

    def generate(context, builder, signature, arguments):
        return context.make_array(array)(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def behind(_, numbers, n):
    """Return the address of the n-th number after an address."""
    return numbers(numbers, types.uintp), lambda context, builder, signature, arguments: builder.gep(
        arguments[0], [arguments[1]]
    )


@intrinsic
def lane_count(_, numbers):
    """Return how many of the numbers at an address make one vector."""
    n = N_LANES[numbers.dtype.bitwidth]
    return types.uintp(numbers), lambda context, *_: context.get_constant(types.uintp, n)


@intrinsic
def load(_, numbers, index):
    """Return the lanes that begin at the i-th number after an address."""
    lanes = Lanes(numbers.dtype)

    def generate(context, builder, signature, arguments):
        start = _pointer_to(context, builder, lanes, *arguments)
        return builder.load(start, align=numbers.dtype.bitwidth // 8)

    return lanes(numbers, types.uintp), generate


@intrinsic
def load_first(_, numbers, index, n):
    """Load the first n lanes from the i-th number after an address on; nothing behind them is read.

    The other lanes hold the smallest integer.
    """
    lanes = Lanes(numbers.dtype)

    def generate(context, builder, signature, arguments):
        vector = context.get_value_type(lanes)
        numbers_of_lanes = ir.Constant(vector, list(range(lanes.n)))
        limit = builder.icmp_signed("<", numbers_of_lanes, _broadcast(builder, vector, arguments[2]))
        pointer, alignment = vector.as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(vector, [pointer, alignment, limit.type, vector])
        function = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.masked.load.v{lanes.n}i{numbers.dtype.bitwidth}.p0"
        )
        start = _pointer_to(context, builder, lanes, *arguments[:2])
        size = alignment(numbers.dtype.bitwidth // 8)
        return builder.call(function, [start, size, limit, _smallest(vector)])

    return lanes(numbers, types.uintp, types.int64), generate


@intrinsic
def prefetch(_, numbers, index):
    """Ask for the i-th number after an address to be in the second-level cache soon; the address may be invalid."""

    def generate(context, builder, signature, arguments):
        kinds = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", kinds[:1], ir.FunctionType(ir.VoidType(), [kinds[0], *[kinds[1]] * 3])
        )
        start = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), kinds[0])
        read, level, data = (kinds[1](number) for number in (0, 2, 1))
        builder.call(function, [start, read, level, data])

    return types.void(numbers, types.uintp), generate


@intrinsic
def store(_, numbers, index, lanes):
    """Write the lanes from the i-th number after an address on."""

    def generate(context, builder, signature, arguments):
        start = _pointer_to(context, builder, lanes, *arguments[:2])
        builder.store(arguments[2], start, align=numbers.dtype.bitwidth // 8)

    return types.void(numbers, types.uintp, lanes), generate


@intrinsic
def lane_of(_, lanes, index):
    """Return the number in the i-th lane of a vector."""
    return lanes.dtype(lanes, types.int64), lambda context, builder, signature, arguments: builder.extract_element(
        *arguments
    )


def _pointer_to(context, builder, lanes, address, index):
    """Return the address of the i-th number, as the address of lanes."""
    return builder.bitcast(builder.gep(address, [index]), context.get_value_type(lanes).as_pointer())


@intrinsic
def transpose(_, numbers, starts, offset, output, index, distance):
    """Transpose a square of numbers: read n vectors of n lanes, and write n vectors, the k-th with lane k of each.

    Args:
        numbers: Address of the numbers that are read.
        starts: Address of the positions of the vectors, uint64.
        offset: Number added to each position.
        output: Address of the numbers that are written.
        index: Where the first vector is written.
        distance: Distance between two vectors that are written.
    """
    lanes = Lanes(numbers.dtype)

    def generate(context, builder, signature, arguments):
        numbers, starts, offset, output, index, distance = arguments
        alignment = lanes.dtype.bitwidth // 8
        rows = []
        for row in range(lanes.n):
            start = builder.add(builder.load(builder.gep(starts, [offset.type(row)])), offset)
            rows.append(builder.load(_pointer_to(context, builder, lanes, numbers, start), align=alignment))
        n = lanes.n // 2
        while n:
            # The lanes are divided into groups of n. Of two rows that are n apart, the second, fourth, … group of the
            # first row changes places with the first, third, … group of the second row.
            for row in (row for row in range(lanes.n) if not row & n):
                x, y = rows[row], rows[row + n]
                kept = [lane if not lane & n else lane - n + lanes.n for lane in range(lanes.n)]
                rows[row] = _shuffle(builder, x, y, kept)
                rows[row + n] = _shuffle(builder, x, y, [lane + n for lane in kept])
            n //= 2
        for row in rows:
            builder.store(row, _pointer_to(context, builder, lanes, output, index), align=alignment)
            index = builder.add(index, distance)

    return types.void(numbers, starts, types.uintp, output, types.uintp, types.uintp), generate


def _shuffle(builder, x, y, numbers):
    """Return a vector with the lanes of these numbers; those of y are numbered behind those of x."""
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers))


@intrinsic
def fill(_, numbers, number):
    """Return lanes of the type of the numbers at an address that all hold one number."""
    lanes = Lanes(numbers.dtype)

    def generate(context, builder, signature, arguments):
        return _broadcast(builder, context.get_value_type(lanes), arguments[1])

    return lanes(numbers, types.int64), generate


def _broadcast(builder, vector, number):
    """Return a vector of this type with the lower bits of an integer in each lane."""
    none = ir.Constant(vector, ir.Undefined)
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), vector.count), [0] * vector.count)
    first = builder.insert_element(none, builder.trunc(number, vector.element), zeros.type.element(0))
    return builder.shuffle_vector(first, none, zeros)


@intrinsic
def smallest(_, numbers):
    """Return lanes that hold the smallest integer, which is the key or level of no number."""
    lanes = Lanes(numbers.dtype)

    def generate(context, builder, signature, arguments):
        return _smallest(context.get_value_type(lanes))

    return lanes(numbers), generate


def _smallest(vector):
    """Return a constant of this type that holds the smallest integer in each lane."""
    return ir.Constant(vector, [-(1 << (vector.element.width - 1))] * vector.count)


@intrinsic
def levels_between(_, keys, lowest, highest):
    """Round keys of 32 bits to levels of 16 bits; return keys of 16 bits as they are.

    A key is the integer of an IEEE number, from strips.key_at. Equal keys have equal levels, and a larger key has no
    smaller level: the difference from the lowest number is multiplied, limited and truncated, and none of these steps
    changes the order, even where a difference is rounded, overflows, or is zero for a processor that takes denormal
    numbers for zero. LOWEST_LEVEL and HIGHEST_LEVEL are the levels of the lowest and the highest key alone.

    Args:
        keys: Lanes of keys, with lowest ≤ keys ≤ highest.
        lowest: The lowest key of each lane.
        highest: The highest key of each lane.

    Returns:
        Lanes of the same type as the keys, with levels from LOWEST_LEVEL to HIGHEST_LEVEL.
    """

    def generate(context, builder, signature, arguments):
        if keys.dtype.bitwidth == 16:
            return arguments[0]
        vector = context.get_value_type(keys)
        numbers_type = ir.VectorType(ir.FloatType(), keys.n)

        def constant(number, kind=vector):
            return ir.Constant(kind, [number] * keys.n)

        def number(key):
            flipped = builder.sub(_smallest(vector), key)
            bits = builder.select(builder.icmp_signed("<", key, constant(0)), flipped, key)
            return builder.bitcast(bits, numbers_type)

        n_steps = HIGHEST_LEVEL - LOWEST_LEVEL - 2
        first = number(arguments[1])
        factor = builder.fdiv(constant(float(n_steps), numbers_type), builder.fsub(number(arguments[2]), first))
        steps = builder.fmul(builder.fsub(number(arguments[0]), first), factor)
        # 0·∞ is not a number, and becomes the last step. The order stays: if the factor is infinite, the other keys
        # above the lowest have the last step too, and if the difference is, no key is higher.
        last = constant(float(n_steps), numbers_type)
        steps = builder.select(builder.fcmp_ordered("<", steps, last), steps, last)
        level = builder.add(builder.fptosi(steps, vector), constant(LOWEST_LEVEL + 1))
        level = builder.select(builder.icmp_signed("<", arguments[0], arguments[2]), level, constant(HIGHEST_LEVEL))
        return builder.select(builder.icmp_signed(">", arguments[0], arguments[1]), level, constant(LOWEST_LEVEL))

    return keys(keys, keys, keys), generate


@intrinsic
def narrow(_, first, second):
    """Return lanes of 16 bits: the lower bits of two vectors of 32 bits, or the first of two vectors of 16 bits."""
    lanes = Lanes(types.int16)

    def generate(context, builder, signature, arguments):
        if first.dtype.bitwidth == 16:
            return arguments[0]
        both = _shuffle(builder, arguments[0], arguments[1], list(range(lanes.n)))
        return builder.trunc(both, context.get_value_type(lanes))

    return lanes(first, first), generate


def _binary(instruction: Callable) -> Callable:
    """Return a function of two vectors of lanes that takes one or two instructions."""

    @intrinsic
    def function(_, x, y):
        return x(x, x), lambda context, builder, signature, arguments: instruction(builder, *arguments)

    return function


higher = _binary(lambda builder, x, y: builder.select(builder.icmp_signed(">", x, y), x, y))
lower = _binary(lambda builder, x, y: builder.select(builder.icmp_signed("<", x, y), x, y))
plus = _binary(lambda builder, x, y: builder.add(x, y))
minus = _binary(lambda builder, x, y: builder.sub(x, y))
bits_of_both = _binary(lambda builder, x, y: builder.and_(x, y))
bits_of_either = _binary(lambda builder, x, y: builder.or_(x, y))


@intrinsic
def greater(_, x, y):
    """Return a word in which bit i says whether lane i of x is greater than that of y."""

    def generate(context, builder, signature, arguments):
        flags = builder.icmp_signed(">", *arguments)
        return builder.zext(builder.bitcast(flags, ir.IntType(flags.type.count)), ir.IntType(64))

    return types.uint64(x, x), generate


@intrinsic
def set_bits(_, word):
    """Return how many bits of a uint64 are set."""
    return types.int64(types.uint64), lambda context, builder, signature, arguments: builder.ctpop(arguments[0])


@intrinsic
def trailing_zeros(_, word):
    """Return the position of the lowest set bit of a uint64 that is not zero."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), generate


@intrinsic
def if_greater(_, x, y, yes, no):
    """Return `yes` in the lanes with x > y and `no` in the others."""

    def generate(context, builder, signature, arguments):
        x, y, yes, no = arguments
        return builder.select(builder.icmp_signed(">", x, y), yes, no)

    return yes(x, x, x, x), generate
