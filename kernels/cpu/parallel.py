"""Parallel loops in compiled code: Numba's threads share the tasks of a function.

Numba has parallel loops of its own, `prange`. They compile the loop's body three times, which takes most of a cold
start, and starting one takes microseconds. This one compiles it once, runs a single task in the calling thread, and
otherwise calls the same function of Numba's threading layer.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .threads import thread_count

thread_count()  # starts the threading layer, which defines the two functions below

WORD, ADDRESS = ir.IntType(64), ir.IntType(8).as_pointer()
# void share(char **arguments, intp *sizes, intp *steps, void *data), in the form of a generalized ufunc: the shares
# from arguments[0] on, sizes[0] of them
SHARE = ir.FunctionType(ir.VoidType(), [ADDRESS.as_pointer(), WORD.as_pointer(), WORD.as_pointer(), ADDRESS])
# void numba_parallel_for(function, arguments, sizes, steps, data, inner dimensions, number of arguments, threads)
PARALLEL_FOR = ir.FunctionType(ir.VoidType(), [ADDRESS] * 5 + [WORD] * 3)
GET_NUM_THREADS = ir.FunctionType(WORD, [])


def uncounted(context, builder, kind, value):
    """Emit `value` with its arrays as views that nobody owns, so that tasks count no references to them.

    The caller holds references meanwhile. Counters would be shared by all threads, which makes each change slow.
    """
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo, array.parent = (ir.Constant(field.type, None) for field in (array.meminfo, array.parent))
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for index, item in enumerate(kind.types):
            element = uncounted(context, builder, item, builder.extract_value(value, index))
            value = builder.insert_value(value, element, index)
    return value


@intrinsic
def run_tasks(typingctx, function, tasks, arguments):
    """Call function(task, *arguments) for task = 0 ... tasks - 1 < 2^32, split into one range per thread.

    function: a compiled function whose result is not used.   arguments: a tuple. An exception in a task is lost.
    """
    # The compiler knows that an unsigned 32-bit number is not negative, so an index made of it needs no test.
    task_signature = function.get_call_type(typingctx, (types.uint32, *arguments.types), {})

    def codegen(context, builder, signature, values):
        _, tasks, packed = values
        compiled = function.dispatcher.overloads[task_signature.args]
        context.add_linking_libs([compiled.library])
        data_type = ir.LiteralStructType([WORD, WORD, packed.type])

        def field(builder, data, index):
            return cgutils.gep_inbounds(builder, data, 0, index)

        share = ir.Function(builder.module, SHARE, builder.module.get_unique_name("share"))
        share.linkage = "internal"
        inner = ir.IRBuilder(share.append_basic_block())
        first, count = inner.ptrtoint(inner.load(share.args[0]), WORD), inner.load(share.args[1])
        data = inner.bitcast(share.args[3], data_type.as_pointer())
        all_tasks, shares, all_arguments = (inner.load(field(inner, data, index)) for index in range(3))
        start = inner.sdiv(inner.mul(all_tasks, first), shares)
        stop = inner.sdiv(inner.mul(all_tasks, inner.add(first, count)), shares)
        unpacked = [
            uncounted(context, inner, kind, value)
            for kind, value in zip(arguments.types, cgutils.unpack_tuple(inner, all_arguments, len(arguments.types)))
        ]
        with cgutils.for_range_slice(inner, start, stop, WORD(1), WORD) as (task, _):
            task = inner.trunc(task, ir.IntType(32))
            context.call_internal_no_propagate(inner, compiled.fndesc, task_signature, [task, *unpacked])
        inner.ret_void()

        threads = builder.call(cgutils.get_or_insert_function(builder.module, GET_NUM_THREADS, "get_num_threads"), [])
        shares = builder.select(builder.icmp_signed("<", tasks, threads), tasks, threads)
        data = cgutils.alloca_once(builder, data_type)
        for index, value in enumerate((tasks, shares, packed)):
            builder.store(value, field(builder, data, index))
        # The layer adds `step` bytes to the first argument for each share: so the address is the share's number.
        base, size, step = (cgutils.alloca_once(builder, kind) for kind in (ADDRESS, WORD, WORD))
        builder.store(ir.Constant(ADDRESS, None), base)
        builder.store(shares, size)
        builder.store(WORD(1), step)
        with builder.if_else(builder.icmp_signed(">", shares, WORD(1))) as (several, alone):
            with several:
                launch = cgutils.get_or_insert_function(builder.module, PARALLEL_FOR, "numba_parallel_for")
                pointers = [builder.bitcast(pointer, ADDRESS) for pointer in (share, base, size, step, data)]
                builder.call(launch, [*pointers, WORD(0), WORD(1), shares])
            with alone, builder.if_then(builder.icmp_signed("==", shares, WORD(1))):
                builder.call(share, [base, size, step, builder.bitcast(data, ADDRESS)])
        return context.get_dummy_value()

    return types.void(function, tasks, arguments), codegen
