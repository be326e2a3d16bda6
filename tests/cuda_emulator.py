"""A CUDA emulator: compiles CUDA source with g++ and runs it on the CPU, to test GPU kernels without a GPU.

The threads of a block are fibers of one CPU thread. A barrier, a shuffle or a tensor-core matmul switches to the next
fiber, and blocks run one after another. A thread without any of these runs to its end, and the next thread reuses its
fiber, so simple kernels are plain loops.

It raises `LaunchError` for
- a barrier that not all threads of a block reach, or where they reach different ones
- a shuffle that not all lanes of its mask reach
- reads and writes past the end of an array (`Memory` ends at a protected page)
- reads and writes outside an array of known size in shared memory or registers
- writes just before an array
- misaligned vectors.

Shared memory starts as NaN in each block. `emulating(order="reversed")` or "shuffled" runs threads and blocks in
another order: if a result changes, the kernel has a race.
"""

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import platform
import re
import shutil
import subprocess
import tempfile
import weakref
from types import SimpleNamespace

import numpy as np

from slm_np.paths import cache_dir

MAX_SHARED = 232448  # bytes of shared memory per block on an H100 or H200
ORDERS = ("forward", "reversed", "shuffled")

RUNTIME = r"""
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef __x86_64__
#include <ucontext.h>
#endif

struct uint3 { unsigned x, y, z; };
uint3 threadIdx, blockIdx, blockDim, gridDim;
int emulated_thread;          // index of the running thread in its block
char* emulated_dynamic;       // dynamic shared memory; it ends at a protected page

enum { MAX_THREADS = 1024, WARPS = 32, STACK = 128 * 1024, SHARED = 232448 };
typedef void (*Kernel)(void**);
typedef void (*Resolve)(void** requests, unsigned mask);

// Fibers: each has a stack and a saved context. The tops of the stacks are staggered, so that they fall into different
// cache sets.
static char* stacks;
#ifdef __x86_64__
// Callee-saved registers are pushed on the stack: a switch takes a few nanoseconds and no system call.
typedef void* Context;
__attribute__((naked, noinline)) static void switch_context(Context* from, Context* to) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
        "movq (%rsi), %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
static void prepare(Context* context, char* stack, void (*start)()) {
    void** top = (void**)(stack + STACK - ((stack - stacks) / STACK) % 61 * 320) - 8;
    memset(top, 0, 64);  // six registers, the start address, and a slot that aligns the stack as after a call
    top[6] = (void*)start;
    *context = top;
}
#else
typedef ucontext_t Context;
static void switch_context(Context* from, Context* to) { swapcontext(from, to); }
static void prepare(Context* context, char* stack, void (*start)()) {
    getcontext(context);
    context->uc_stack.ss_sp = stack; context->uc_stack.ss_size = STACK; context->uc_link = 0;
    makecontext(context, start, 0);
}
#endif

static Context contexts[MAX_THREADS], main_context;
static int idle[MAX_THREADS], idle_count, fiber_of[MAX_THREADS];   // fibers without a thread; the fiber of a thread

// The running block.
static Kernel kernel;
static void** arguments;
static uint3 index_of[MAX_THREADS];
static int threads, warps, turn, warp_order[WARPS];
static unsigned fresh[WARPS], ready[WARPS], waiting[WARPS];  // lanes not started; ready to run; waiting in a collective
static void* request_of[MAX_THREADS];
static Resolve resolve_of[MAX_THREADS];
static unsigned mask_of[MAX_THREADS];
static int line_of[MAX_THREADS];
static int at_barrier, barrier_line, predicates, previous_predicates;
static int order;            // 0 forward, 1 reversed, 2 shuffled
static uint64_t random_state;

static char* message;
static sigjmp_buf failure;
static volatile sig_atomic_t running;
static void* fault;

static unsigned draw(unsigned n) {
    random_state ^= random_state << 13; random_state ^= random_state >> 7; random_state ^= random_state << 17;
    return (random_state >> 20) % n;
}
template <class... A> [[noreturn]] static void fail(const char* format, A... values) {
    snprintf(message, 500, format, values...);
    siglongjmp(failure, 1);
}
extern "C" [[noreturn]] void emulated_trap(const char* what) { fail("%s", what); }

static void order_warps() {
    for (int w = 0; w < warps; w++) warp_order[w] = order == 1 ? warps - 1 - w : w;
    for (int w = warps - 1; order == 2 && w > 0; w--) {
        const int other = draw(w + 1), swapped = warp_order[w];
        warp_order[w] = warp_order[other], warp_order[other] = swapped;
    }
    turn = 0;
}

// The thread that runs next, or -1 when the block has finished.
static int next_thread() {
    for (;;) {
        for (; turn < warps; turn++) {
            const int w = warp_order[turn];
            const unsigned runnable = fresh[w] | ready[w];
            if (runnable) {
                int lane = order == 0 ? __builtin_ctz(runnable) : order == 1 ? 31 - __builtin_clz(runnable) : 0;
                if (order == 2) {
                    const unsigned by = draw(32);
                    lane = (__builtin_ctz(by ? runnable >> by | runnable << (32 - by) : runnable) + by) % 32;
                }
                return w * 32 + lane;
            }
            if (waiting[w]) {
                const int lane = __builtin_ctz(waiting[w]), t = w * 32 + lane;
                fail("warp %d, lane %d: a shuffle, vote, mma or __syncwarp waits for lanes %08x, "
                     "but only %08x arrive @%d",
                     w, lane, mask_of[t], waiting[w] & mask_of[t], line_of[t]);
            }
        }
        if (!at_barrier) return -1;
        if (at_barrier != threads)
            fail("divergent barrier: %d of %d threads reach __syncthreads, the others have returned @%d",
                 at_barrier, threads, barrier_line);
        for (int t = 0; t < threads; t++) ready[t / 32] |= 1u << t % 32;
        previous_predicates = predicates;
        at_barrier = predicates = 0;
        order_warps();
    }
}
static inline bool enter(int thread) {  // returns whether the thread is new
    emulated_thread = thread;
    threadIdx = index_of[thread];
    const unsigned bit = 1u << thread % 32;
    const bool starts = fresh[thread / 32] & bit;
    fresh[thread / 32] &= ~bit;
    ready[thread / 32] &= ~bit;
    return starts;
}
static void run_fiber() {
    for (;;) {
        const int fiber = fiber_of[emulated_thread];
        kernel(arguments);
        const int next = next_thread();
        if (next >= 0 && enter(next)) { fiber_of[next] = fiber; continue; }
        idle[idle_count++] = fiber;
        switch_context(&contexts[fiber], next < 0 ? &main_context : &contexts[fiber_of[next]]);
    }
}
static void yield_fiber() {
    const int self = emulated_thread, next = next_thread();
    if (enter(next)) fiber_of[next] = idle[--idle_count];
    if (next != self) switch_context(&contexts[fiber_of[self]], &contexts[fiber_of[next]]);
}

// Called by kernels.
extern "C" int emulated_barrier(int predicate, int line) {
    if (at_barrier && line != barrier_line)
        fail("divergent barrier: thread %d waits at a different __syncthreads than earlier threads @%d @%d",
             emulated_thread, line, barrier_line);
    at_barrier++, barrier_line = line, predicates += predicate != 0;
    yield_fiber();
    return previous_predicates;
}
// All lanes of `mask` arrive here with one request each; the last one calls `resolve` on all requests.
extern "C" void emulated_collective(void* request, Resolve resolve, unsigned mask, int line) {
    const int self = emulated_thread, w = self / 32, first = w * 32;
    const int lanes = threads - first < 32 ? threads - first : 32;
    if (!(mask >> self % 32 & 1) || (lanes < 32 && mask >> lanes))
        fail("thread %d: mask %08x of a shuffle, vote, mma or __syncwarp omits its own lane, "
             "or names lanes outside the block @%d", self, mask, line);
    request_of[self] = request, resolve_of[self] = resolve, mask_of[self] = mask, line_of[self] = line;
    if (waiting[w] & mask) {
        const int t = first + __builtin_ctz(waiting[w] & mask);
        if (resolve_of[t] != resolve || mask_of[t] != mask || line_of[t] != line)
            fail("warp %d diverges: lanes %d and %d wait for each other at different operations @%d @%d",
                 w, self % 32, t % 32, line, line_of[t]);
    }
    waiting[w] |= 1u << self % 32;
    if ((waiting[w] & mask) == mask) {
        resolve(request_of + first, mask);
        waiting[w] &= ~mask;
        ready[w] |= mask & ~(1u << self % 32);
    } else yield_fiber();
}

static void on_signal(int signal, siginfo_t* info, void*) {
    if (!running) { ::signal(signal, SIG_DFL); return; }
    fault = info->si_addr;
    fail("%s", signal == SIGILL || signal == SIGTRAP ? "index" : signal == SIGFPE ? "division" : "address");
}

// Runs all blocks of a launch. Returns 0, or 1 with the message in `why` and the address of a fault in `where`.
extern "C" int emulated_launch(Kernel run, void** values, const unsigned* blocks, const unsigned* block, size_t shared,
                               int run_order, uint64_t seed, char* static_shared, char* static_shared_end,
                               char* why, void** where) {
    static char *signal_stack, *dynamic_end;
    if (!stacks) {
        const long page = sysconf(_SC_PAGESIZE);
        const int access = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS;
        stacks = (char*)mmap(0, (size_t)MAX_THREADS * STACK, access, flags | MAP_NORESERVE, -1, 0);
        for (int f = 0; f < MAX_THREADS; f++) mprotect(stacks + (size_t)f * STACK, page, PROT_NONE);
        const size_t size = (SHARED + page - 1) / page * page;
        dynamic_end = (char*)mmap(0, size + page, access, flags, -1, 0) + size;
        mprotect(dynamic_end, page, PROT_NONE);
        signal_stack = (char*)mmap(0, 65536, access, flags, -1, 0);
    }
    kernel = run, arguments = values, message = why, order = run_order, random_state = seed * 2 + 88172645463325253ull;
    gridDim = {blocks[0], blocks[1], blocks[2]}, blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2], warps = (threads + 31) / 32;
    for (int t = 0; t < threads; t++) index_of[t] = {t % block[0], t / block[0] % block[1], t / (block[0] * block[1])};
    emulated_dynamic = dynamic_end - (shared + 15) / 16 * 16;
    idle_count = 0;
    for (int f = MAX_THREADS - 1; f >= 0; f--) idle[idle_count++] = f;
    for (int f = 0; f < threads; f++) prepare(&contexts[f], stacks + (size_t)f * STACK, run_fiber);

    stack_t alternate = {}, stack_before;
    alternate.ss_sp = signal_stack, alternate.ss_size = 65536;
    sigaltstack(&alternate, &stack_before);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct sigaction action = {}, before[5];
    action.sa_sigaction = on_signal, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; i++) sigaction(signals[i], &action, &before[i]);
    fault = 0;
    const int failed = sigsetjmp(failure, 1);
    if (!failed) {
        running = 1;
        const size_t count = (size_t)blocks[0] * blocks[1] * blocks[2], first = order == 2 ? draw(count) : 0;
        size_t step = order == 2 ? draw(count) | 1 : 1;
        for (size_t a = step, b = count; b;) {  // step and count must be coprime, so that every block runs once
            const size_t remainder = a % b;
            a = b, b = remainder;
            if (!b && a != 1) step = 1;
        }
        for (size_t i = 0; i < count; i++) {
            const size_t b = order == 1 ? count - 1 - i : (first + i * step) % count;
            blockIdx = {(unsigned)(b % blocks[0]), (unsigned)(b / blocks[0] % blocks[1]),
                        (unsigned)(b / ((size_t)blocks[0] * blocks[1]))};
            memset(emulated_dynamic, 0xff, dynamic_end - emulated_dynamic);  // NaN
            memset(static_shared, 0xff, static_shared_end - static_shared);
            for (int w = 0; w < warps; w++) {
                ready[w] = waiting[w] = 0;
                fresh[w] = threads - w * 32 < 32 ? (1u << (threads - w * 32)) - 1 : ~0u;
            }
            at_barrier = predicates = 0;
            order_warps();
            const int thread = next_thread();
            enter(thread);
            fiber_of[thread] = idle[--idle_count];
            switch_context(&main_context, &contexts[fiber_of[thread]]);
        }
    }
    running = 0;
    for (int i = 0; i < 5; i++) sigaction(signals[i], &before[i], 0);
    sigaltstack(&stack_before, 0);
    *where = fault;
    return failed;
}
"""

HEADER = r"""
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>
#include <utility>

#define __global__ __attribute__((visibility("hidden")))
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#ifdef __APPLE__
#define __shared__ static
#else
#define __shared__ static __attribute__((section("emulated_shared")))
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 : uint3 { dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {} };
extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;
extern int emulated_thread;
extern char* emulated_dynamic;
extern "C" int emulated_barrier(int predicate, int line);
extern "C" void emulated_collective(void* request, void (*resolve)(void** requests, unsigned mask), unsigned mask,
                                    int line);
extern "C" [[noreturn]] void emulated_trap(const char* what);

#define EMULATED_VECTORS(T, name) \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; }; \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
    struct __align__(sizeof(T) == 8 ? 16 : 4 * sizeof(T)) name##4 { T x, y, z, w; }; \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATED_VECTORS(float, float)
EMULATED_VECTORS(double, double)
EMULATED_VECTORS(int, int)
EMULATED_VECTORS(unsigned, uint)
EMULATED_VECTORS(short, short)
EMULATED_VECTORS(unsigned short, ushort)
EMULATED_VECTORS(signed char, char)
EMULATED_VECTORS(unsigned char, uchar)

// Barriers and memory
#define __syncthreads() ((void)emulated_barrier(0, __LINE__))
#define __syncthreads_count(predicate) emulated_barrier((predicate) != 0, __LINE__)
#define __syncthreads_or(predicate) (emulated_barrier((predicate) != 0, __LINE__) != 0)
#define __syncthreads_and(predicate) (emulated_barrier((predicate) == 0, __LINE__) == 0)
static inline void __threadfence() {}
static inline void __threadfence_block() {}
template <class T> static inline T __ldg(const T* p) { return *p; }
template <class T> static inline T __ldcs(const T* p) { return *p; }
template <class T> static inline T __ldcg(const T* p) { return *p; }
template <class T> static inline void __stcs(T* p, T v) { *p = v; }
template <class T> static inline void __stcg(T* p, T v) { *p = v; }
template <class T, class V> static inline T atomicAdd(T* p, V v) { T old = *p; *p = old + (T)v; return old; }
static inline void __trap() { emulated_trap("__trap()"); }

// The warp
template <class T> struct EmulatedShuffle { T value; int source; T result; };
template <class T> void emulated_shuffle(void** requests, unsigned mask) {
    for (unsigned left = mask; left; left &= left - 1) {
        auto request = (EmulatedShuffle<T>*)requests[__builtin_ctz(left)];
        if (!(mask >> request->source & 1)) emulated_trap("a shuffle reads a lane outside its mask");
        request->result = ((EmulatedShuffle<T>*)requests[request->source])->value;
    }
}
template <class T> static inline T emulated_exchange(unsigned mask, T value, int source, int line) {
    EmulatedShuffle<T> request{value, source, value};
    emulated_collective(&request, emulated_shuffle<T>, mask, line);
    return request.result;
}
template <class T> static inline T emulated_shfl(unsigned mask, T v, int source, int width, int line) {
    return emulated_exchange(mask, v, (emulated_thread % 32 & ~(width - 1)) | (source & (width - 1)), line);
}
// A source outside the lane's group of `width` lanes returns the lane's own value.
template <class T> static inline T emulated_shfl_group(unsigned mask, T v, int source, int width, int line) {
    const int lane = emulated_thread % 32;
    return emulated_exchange(mask, v, (source & ~(width - 1)) == (lane & ~(width - 1)) ? source : lane, line);
}
static inline int emulated_width(int width = 32) { return width; }
#define __shfl_sync(mask, v, source, ...) emulated_shfl(mask, v, source, emulated_width(__VA_ARGS__), __LINE__)
#define EMULATED_GROUP(mask, v, source, ...) emulated_shfl_group(mask, v, source, emulated_width(__VA_ARGS__), __LINE__)
#define __shfl_xor_sync(mask, v, by, ...) EMULATED_GROUP(mask, v, emulated_thread % 32 ^ (int)(by), __VA_ARGS__)
#define __shfl_up_sync(mask, v, by, ...) EMULATED_GROUP(mask, v, emulated_thread % 32 - (int)(by), __VA_ARGS__)
#define __shfl_down_sync(mask, v, by, ...) EMULATED_GROUP(mask, v, emulated_thread % 32 + (int)(by), __VA_ARGS__)

struct EmulatedVote { bool predicate; unsigned votes; };
static void emulated_vote(void** requests, unsigned mask) {
    const auto vote = [&](unsigned lane) { return (EmulatedVote*)requests[lane]; };
    unsigned votes = 0;
    for (unsigned left = mask; left; left &= left - 1)
        votes |= (unsigned)vote(__builtin_ctz(left))->predicate << __builtin_ctz(left);
    for (unsigned left = mask; left; left &= left - 1) vote(__builtin_ctz(left))->votes = votes;
}
static inline unsigned emulated_ballot(unsigned mask, bool predicate, int line) {
    EmulatedVote request{predicate, 0};
    emulated_collective(&request, emulated_vote, mask, line);
    return request.votes;
}
#define __ballot_sync(mask, predicate) emulated_ballot(mask, predicate, __LINE__)
#define __any_sync(mask, predicate) (emulated_ballot(mask, predicate, __LINE__) != 0)
#define __all_sync(mask, predicate) (emulated_ballot(mask, predicate, __LINE__) == (mask))
static inline unsigned emulated_mask(unsigned mask = 0xffffffffu) { return mask; }
#define __syncwarp(...) ((void)emulated_ballot(emulated_mask(__VA_ARGS__), 0, __LINE__))

// Arithmetic
template <class To, class From> static inline To emulated_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &v, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float v) { return emulated_bits<unsigned>(v); }
static inline int __float_as_int(float v) { return emulated_bits<int>(v); }
static inline float __uint_as_float(unsigned v) { return emulated_bits<float>(v); }
static inline float __int_as_float(int v) { return emulated_bits<float>(v); }
static inline long long __double_as_longlong(double v) { return emulated_bits<long long>(v); }
static inline double __longlong_as_double(long long v) { return emulated_bits<double>(v); }
template <class A, class B> static inline auto max(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)fmax((C)a, (C)b); else return (C)a > (C)b ? (C)a : (C)b;
}
template <class A, class B> static inline auto min(A a, B b) {
    using C = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<C>) return (C)fmin((C)a, (C)b); else return (C)a < (C)b ? (C)a : (C)b;
}
static inline float rsqrtf(float v) { return 1 / sqrtf(v); }
static inline float rsqrt(float v) { return 1 / sqrtf(v); }
static inline double rsqrt(double v) { return 1 / sqrt(v); }
static inline float normcdff(float v) { return erfcf(-v * 0.70710678118654752f) / 2; }
static inline double normcdf(double v) { return erfc(-v * 0.70710678118654752) / 2; }
#define __expf expf  // the C library has private functions of these names
#define __logf logf
#define __sinf sinf
#define __cosf cosf
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __frcp_rn(float v) { return 1 / v; }
static inline float __fsqrt_rn(float v) { return sqrtf(v); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline int __float2int_rn(float v) { return (int)rintf(v); }
static inline int __float2int_rd(float v) { return (int)floorf(v); }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }

// The prelude has these in PTX
static inline float half_value(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, magnitude = bits & 0x7fff;
    if (magnitude < 0x400) return copysignf(magnitude * 0x1p-24f, __uint_as_float(sign));
    return __uint_as_float(sign | (magnitude << 13) + (magnitude < 0x7c00 ? 0x38000000u : 0x70000000u));
}
static inline unsigned short half_bits(float v) {
    const unsigned bits = __float_as_uint(v), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return 0x7fff;
    if (magnitude >= 0x47800000) return sign | 0x7c00;
    if (magnitude < 0x38800000)  // adding 0.5 rounds to the spacing of subnormal halves
        return sign | __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000;
    return sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - 0x38000000) >> 13;
}
struct EmulatedMma { float* d; const unsigned* a; const unsigned* b; };
template <class T> void emulated_mma(void** requests, unsigned) {
    static double A[16][16], B[16][8];
    const auto lane = [&](int i) { return (EmulatedMma*)requests[i]; };
    for (int l = 0; l < 32; l++)
        for (int high = 0; high < 2; high++) {
            const int i = l / 4, j = l % 4 * 2 + high, shift = 16 * high;
            for (int r = 0; r < 4; r++)
                A[i + r % 2 * 8][j + r / 2 * 8] = load(T{(unsigned short)(lane(l)->a[r] >> shift)});
            for (int r = 0; r < 2; r++) B[j + r * 8][i] = load(T{(unsigned short)(lane(l)->b[r] >> shift)});
        }
    for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++) {
            const int row = l / 4 + r / 2 * 8, column = l % 4 * 2 + r % 2;
            double sum = lane(l)->d[r];
            for (int k = 0; k < 16; k++) sum += A[row][k] * B[k][column];
            lane(l)->d[r] = (float)sum;
        }
}
template <class T> static inline void mma(float d[4], const unsigned a[4], const unsigned b[2]) {
    EmulatedMma request{d, a, b};
    emulated_collective(&request, emulated_mma<T>, 0xffffffffu, 0);
}
"""

FOOTER = r"""
template <class... A, size_t... I>
static inline void emulated_call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*(A*)values[I]...);
}
template <class... A> static inline void emulated_call(void (*kernel)(A...), void** values) {
    emulated_call(kernel, values, std::index_sequence_for<A...>());
}
template <class... A> static int emulated_sizes(void (*)(A...), int* sizes) {
    int n = 0;
    ((sizes[n++] = (int)sizeof(A)), ...);
    return n;
}
extern "C" void emulated_static_shared(char** bounds) {
#ifdef __APPLE__
    bounds[0] = bounds[1] = nullptr;
#else
    bounds[0] = __start_emulated_shared, bounds[1] = __stop_emulated_shared;
#endif
}
"""


class LaunchError(RuntimeError):
    """A kernel did what is an error or undefined on a GPU."""


settings = SimpleNamespace(order="forward", seed=0, tensor_cores=True)


@contextlib.contextmanager
def emulating(**changed):
    """A context with other settings.

    order: of threads, warps and blocks: "forward", "reversed" or "shuffled" by `seed`.   tensor_cores: False for a GPU
    before sm_80
    """
    before = dict(vars(settings))
    if not set(changed) <= set(before) or changed.get("order", "forward") not in ORDERS:
        raise ValueError(f"the emulator has no setting {changed}")
    vars(settings).update(changed)
    try:
        yield
    finally:
        vars(settings).update(before)


@functools.cache
def missing():
    """Why the emulator cannot run on this machine, or None."""
    if os.name != "posix":
        return "the CUDA emulator needs a POSIX system"
    return None if shutil.which("g++") else "the CUDA emulator needs g++"


def compiled_library(source, *flags):
    """The path of the compiled library; compiled only if it is not in the cache."""
    if missing():
        raise RuntimeError(missing())
    flags = (
        "-std=gnu++17",
        "-shared",
        "-fPIC",
        "-w",
        *flags,
        *(("-undefined", "dynamic_lookup") if platform.system() == "Darwin" else ()),
    )
    path = (
        cache_dir()
        / "cuda_emulator"
        / (hashlib.sha256(f"{platform.machine()} {flags} {source}".encode()).hexdigest()[:24] + ".so")
    )
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when complete, since another process may compile the same source.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = os.path.join(folder, "kernel.so")
            run = subprocess.run(
                ["g++", "-x", "c++", "-", *flags, "-o", made], input=source.encode(), capture_output=True
            )
            if run.returncode:
                raise ValueError("the emulator cannot compile this kernel:\n" + run.stderr.decode()[:6000])
            os.replace(made, path)
    return path


@functools.cache
def _runtime():
    return ctypes.PyDLL(str(compiled_library(RUNTIME, "-O2")), mode=ctypes.RTLD_GLOBAL)  # PyDLL: one launch at a time


class Memory:
    """Memory that starts as NaN and ends, up to 16-byte alignment, at a protected page. `buffer` is its bytes."""

    live = weakref.WeakValueDictionary()  # by address

    def __init__(self, nbytes):
        page = mmap.PAGESIZE
        size = -(-(nbytes + 64) // page) * page
        mapped = mmap.mmap(-1, size + page)
        whole = np.frombuffer(mapped, np.uint8)
        start = size - -(-nbytes // 16) * 16
        self.address, self.nbytes, self.buffer = whole.ctypes.data + start, nbytes, whole[start : start + nbytes]
        self._before, self._after = whole[start - 64 : start], whole[start + nbytes : size]
        self.buffer.fill(0xFF)
        self._before.fill(0xCA)
        self._after.fill(0xCA)
        protect = ctypes.CDLL(None).mprotect
        if protect(ctypes.c_void_p(whole.ctypes.data + size), ctypes.c_size_t(page), 0):
            raise OSError("mprotect")
        Memory.live[self.address] = self

    def written_outside(self, kernel):
        """A message if a kernel has written just outside the array, else None."""
        for guard, where in ((self._before, "before the start"), (self._after, "past the end")):
            if (guard != 0xCA).any():
                guard.fill(0xCA)
                return f"{kernel}: out of bounds: writes {where} of an array of {self.nbytes} bytes"


def _nearest(address):
    """A description of a protected address."""
    for start, memory in list(Memory.live.items()):
        end = start + memory.nbytes
        if end <= address < end + mmap.PAGESIZE + 64:
            return f"{address - end} bytes past the end of an array of {memory.nbytes} bytes"
        if start - mmap.PAGESIZE <= address < start:
            return f"{start - address} bytes before the start of an array of {memory.nbytes} bytes"
    return (
        f"address {address:#x} is in no array: a null pointer, far outside an array, beyond dynamic shared memory, "
        "or misaligned"
    )


class Program:
    """One source, compiled at the first launch: `program.launch(name, blocks, threads, values, shared)`.

    values: NumPy scalars or arrays of one element
    """

    def __init__(self, code):
        self.code, self._libraries = code, {}

    def _compiled(self):
        cores = settings.tensor_cores
        if cores not in self._libraries:
            _runtime()
            # The address of dynamic shared memory is known only when the block runs.
            aligned, bounds = (
                r"(?:(?:__align__|alignas)\s*\(\d+\)\s*)?",
                r"(?:__launch_bounds__\s*\(((?:[^(),]|\([^()]*\))*)[^()]*\)\s*)?",
            )
            text = re.sub(
                rf"extern\s+{aligned}__shared__\s+{aligned}([\w:<> ]+?)\s*\b(\w+)\s*\[\s*\]\s*;",
                r"\1* \2 = (\1*)emulated_dynamic;",
                self.code,
            )
            names = re.findall(rf'extern\s+"C"\s+__global__\s+{bounds}void\s+{bounds}(\w+)\s*\(', text)
            launchers = "".join(
                f'extern "C" void emulated_run_{name}(void** values) {{ emulated_call({name}, values); }}\n'
                f'extern "C" int emulated_sizes_{name}(int* sizes) {{ return emulated_sizes({name}, sizes); }}\n'
                f'extern "C" int emulated_max_threads_{name}() {{ return {before or after or 1024}; }}\n'
                for before, after, name in names
            )
            # In an unnamed namespace, static variables of templates are ordinary variables, which can share a section.
            source = (
                f"{HEADER}\n#define TENSOR_CORES {int(cores)}\nnamespace {{\n#line 1\n{text}\n}}\n{FOOTER}{launchers}"
            )
            flags = (
                "-O1",
                "-fsanitize=bounds,alignment",
                "-fsanitize-undefined-trap-on-error",
                "-fno-strict-aliasing",
                "-ffp-contract=off",
            )
            self._libraries[cores] = ctypes.PyDLL(str(compiled_library(source, *flags)))
        return self._libraries[cores]

    def has(self, name):
        return hasattr(self._compiled(), f"emulated_run_{name}")

    def launch(self, name, blocks, threads, values, shared=0, memories=()):
        library = self._compiled()
        blocks, threads = ((tuple(map(int, size)) + (1, 1))[:3] for size in (blocks, threads))
        max_threads = min(1024, getattr(library, f"emulated_max_threads_{name}")())
        if (
            threads[0] * threads[1] * threads[2] > max_threads
            or threads[2] > 64
            or min(blocks + threads) < 1
            or max(blocks[1:]) > 65535
            or blocks[0] > 2**31 - 1
        ):
            raise LaunchError(
                f"{name} cannot be launched with {blocks} blocks of {threads} threads; "
                f"a block has at most {max_threads} threads"
            )
        if shared > MAX_SHARED:
            raise LaunchError(f"{name}: a block has at most {MAX_SHARED} bytes of shared memory, not {shared}")
        sizes = (ctypes.c_int * 256)()
        count = getattr(library, f"emulated_sizes_{name}")(sizes)
        values = [np.ascontiguousarray(value) for value in values]
        if [value.nbytes for value in values] != list(sizes[:count]):
            raise LaunchError(
                f"{name} takes arguments of {list(sizes[:count])} bytes, not {[value.nbytes for value in values]}"
            )
        pointers = (ctypes.c_void_p * max(1, count))(*(value.ctypes.data for value in values))
        static_shared, why, where = (ctypes.c_void_p * 2)(), ctypes.create_string_buffer(512), ctypes.c_void_p()
        library.emulated_static_shared(static_shared)
        three = ctypes.c_uint * 3
        failed = _runtime().emulated_launch(
            ctypes.cast(getattr(library, f"emulated_run_{name}"), ctypes.c_void_p),
            pointers,
            three(*blocks),
            three(*threads),
            ctypes.c_size_t(shared),
            ORDERS.index(settings.order),
            ctypes.c_uint64(settings.seed),
            ctypes.c_void_p(static_shared[0]),
            ctypes.c_void_p(static_shared[1]),
            why,
            ctypes.byref(where),
        )
        message = f"{name}: {self._message(why.value.decode(), where.value or 0)}" if failed else None
        for memory in memories:
            message = memory.written_outside(name) or message
        if message:
            raise LaunchError(message)

    def _message(self, why, address):
        """The runtime's message in words, with source lines for line numbers."""
        if why == "address":
            return f"out of bounds: {_nearest(address)}"
        if why == "index":
            return (
                "out of bounds or misaligned: an index outside an array of shared memory or registers, or a vectorized "
                "access at an address that is no multiple of its size"
            )
        if why == "division":
            return "an integer is divided by zero"
        lines = self.code.splitlines()
        return re.sub(
            r" @(\d+)",
            lambda line: f", in `{lines[int(line[1]) - 1].strip()}`" if 0 < int(line[1]) <= len(lines) else "",
            why,
        )
