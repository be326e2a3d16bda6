"""CUDA source compiled with g++ and run on the CPU, so that GPU kernels can be tested where no GPU is.

The threads of a block are fibers of one thread: a barrier, a shuffle or a tensor-core product switches to the next, and blocks run one after
another. A thread that meets none of these runs to its end and the next one runs on the same fiber, so that simple kernels are plain loops.

What it finds (`LaunchError`): a barrier that not all threads of a block reach, or not the same one; a shuffle that not all lanes of its mask reach; reads
and writes past an array (`Memory` ends at a page that may not be touched) and past arrays in shared memory or registers whose size is known; writes just
before an array; vectors that are not aligned. Shared memory starts as NaN in each block. `emulating(order="reversed")` or "shuffled" runs threads
and blocks in another order: where a result changes, there is a race.
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

MOST_SHARED = 232448  # bytes of shared memory that a block can have on an H100 or H200
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
int emulated_thread;          // number of the running thread in its block
char* emulated_dynamic;       // dynamic shared memory; it ends at a page that may not be touched

enum { MOST = 1024, WARPS = 32, STACK = 128 * 1024, SHARED = 232448 };
typedef void (*Kernel)(void**);
typedef void (*Resolve)(void** requests, unsigned mask);

// Fibers: a stack each, and where they were left. The tops lie in different lines of the cache: at the same places they would drive each other out.
static char* stacks;
#ifdef __x86_64__
typedef void* Place;  // only what a call must keep is saved, on the stack itself: a switch costs a few nanoseconds and no system call
__attribute__((naked, noinline)) static void change(Place* from, Place* to) {
    asm("pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15; movq %rsp, (%rdi);"
        "movq (%rsi), %rsp; popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
static void prepare(Place* place, char* stack, void (*start)()) {
    void** top = (void**)(stack + STACK - ((stack - stacks) / STACK) % 61 * 320) - 8;
    memset(top, 0, 64);  // six registers, the address to start at, and a slot that aligns the stack as after a call
    top[6] = (void*)start;
    *place = top;
}
#else
typedef ucontext_t Place;
static void change(Place* from, Place* to) { swapcontext(from, to); }
static void prepare(Place* place, char* stack, void (*start)()) {
    getcontext(place);
    place->uc_stack.ss_sp = stack; place->uc_stack.ss_size = STACK; place->uc_link = 0;
    makecontext(place, start, 0);
}
#endif

static Place places[MOST], home;
static int idle[MOST], idles, fiber_of[MOST];   // fibers without a thread; the fiber of a thread

// The block that runs.
static Kernel kernel;
static void** arguments;
static uint3 index_of[MOST];
static int threads, warps, turn, warp_order[WARPS];
static unsigned fresh[WARPS], ready[WARPS], waiting[WARPS];  // lanes not started; able to go on; in a collective
static void* request_of[MOST];
static Resolve resolve_of[MOST];
static unsigned mask_of[MOST];
static int line_of[MOST];
static int at_barrier, barrier_line, predicates, predicates_before;
static int order;            // 0 forward, 1 reversed, 2 shuffled
static uint64_t chance;

static char* message;
static sigjmp_buf out;
static volatile sig_atomic_t running;
static void* fault;

static unsigned draw(unsigned n) {
    chance ^= chance << 13; chance ^= chance >> 7; chance ^= chance << 17;
    return (chance >> 20) % n;
}
template <class... A> [[noreturn]] static void fail(const char* form, A... values) {
    snprintf(message, 500, form, values...);
    siglongjmp(out, 1);
}
extern "C" [[noreturn]] void emulated_trap(const char* what) { fail("%s", what); }

static void order_warps() {
    for (int w = 0; w < warps; w++) warp_order[w] = order == 1 ? warps - 1 - w : w;
    for (int w = warps - 1; order == 2 && w > 0; w--) {
        const int other = draw(w + 1), kept = warp_order[w];
        warp_order[w] = warp_order[other], warp_order[other] = kept;
    }
    turn = 0;
}

// The thread that runs next; -1 when the block is done.
static int pick() {
    for (;;) {
        for (; turn < warps; turn++) {
            const int w = warp_order[turn];
            const unsigned can = fresh[w] | ready[w];
            if (can) {
                int lane = order == 0 ? __builtin_ctz(can) : order == 1 ? 31 - __builtin_clz(can) : 0;
                if (order == 2) { const unsigned by = draw(32); lane = (__builtin_ctz(by ? can >> by | can << (32 - by) : can) + by) % 32; }
                return w * 32 + lane;
            }
            if (waiting[w]) {
                const int lane = __builtin_ctz(waiting[w]), t = w * 32 + lane;
                fail("warp %d, lane %d: a shuffle, vote, product or __syncwarp waits for lanes %08x, of which only %08x come @%d",
                     w, lane, mask_of[t], waiting[w] & mask_of[t], line_of[t]);
            }
        }
        if (!at_barrier) return -1;
        if (at_barrier != threads)
            fail("divergent barrier: %d of %d threads reach __syncthreads, the others have returned @%d", at_barrier, threads, barrier_line);
        for (int t = 0; t < threads; t++) ready[t / 32] |= 1u << t % 32;
        predicates_before = predicates;
        at_barrier = predicates = 0;
        order_warps();
    }
}
static inline bool enter(int thread) {  // whether it starts
    emulated_thread = thread;
    threadIdx = index_of[thread];
    const unsigned bit = 1u << thread % 32;
    const bool starts = fresh[thread / 32] & bit;
    fresh[thread / 32] &= ~bit;
    ready[thread / 32] &= ~bit;
    return starts;
}
static void live() {  // the life of a fiber
    for (;;) {
        const int fiber = fiber_of[emulated_thread];
        kernel(arguments);
        const int next = pick();
        if (next >= 0 && enter(next)) { fiber_of[next] = fiber; continue; }
        idle[idles++] = fiber;
        change(&places[fiber], next < 0 ? &home : &places[fiber_of[next]]);
    }
}
static void give_way() {
    const int me = emulated_thread, next = pick();
    if (enter(next)) fiber_of[next] = idle[--idles];
    if (next != me) change(&places[fiber_of[me]], &places[fiber_of[next]]);
}

// Called by kernels.
extern "C" int emulated_barrier(int predicate, int line) {
    if (at_barrier && line != barrier_line)
        fail("divergent barrier: thread %d waits at another __syncthreads than those before it @%d @%d", emulated_thread, line, barrier_line);
    at_barrier++, barrier_line = line, predicates += predicate != 0;
    give_way();
    return predicates_before;
}
// All lanes of `mask` come here with a request each; the last to come calls `resolve` on all of them.
extern "C" void emulated_collective(void* request, Resolve resolve, unsigned mask, int line) {
    const int me = emulated_thread, w = me / 32, first = w * 32, lanes = threads - first < 32 ? threads - first : 32;
    if (!(mask >> me % 32 & 1) || (lanes < 32 && mask >> lanes))
        fail("thread %d: mask %08x of a shuffle, vote, product or __syncwarp leaves out its own lane, or names lanes that the block has not @%d",
             me, mask, line);
    request_of[me] = request, resolve_of[me] = resolve, mask_of[me] = mask, line_of[me] = line;
    if (waiting[w] & mask) {
        const int t = first + __builtin_ctz(waiting[w] & mask);
        if (resolve_of[t] != resolve || mask_of[t] != mask || line_of[t] != line)
            fail("warp %d diverges: lanes %d and %d wait for each other at different operations @%d @%d", w, me % 32, t % 32, line, line_of[t]);
    }
    waiting[w] |= 1u << me % 32;
    if ((waiting[w] & mask) == mask) {
        resolve(request_of + first, mask);
        waiting[w] &= ~mask;
        ready[w] |= mask & ~(1u << me % 32);
    } else give_way();
}

static void caught(int signal, siginfo_t* info, void*) {
    if (!running) { ::signal(signal, SIG_DFL); return; }
    fault = info->si_addr;
    fail("%s", signal == SIGILL || signal == SIGTRAP ? "index" : signal == SIGFPE ? "division" : "address");
}

extern "C" int emulated_launch(Kernel run, void** values, const unsigned* blocks, const unsigned* block, size_t shared, int run_order, uint64_t seed,
                               char* poison, char* poison_end, char* why, void** where) {
    static char *alternate, *room;
    if (!stacks) {
        const long page = sysconf(_SC_PAGESIZE);
        stacks = (char*)mmap(0, (size_t)MOST * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (int f = 0; f < MOST; f++) mprotect(stacks + (size_t)f * STACK, page, PROT_NONE);
        const size_t size = (SHARED + page - 1) / page * page;
        room = (char*)mmap(0, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) + size;
        mprotect(room, page, PROT_NONE);
        alternate = (char*)mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    }
    kernel = run, arguments = values, message = why, order = run_order, chance = seed * 2 + 88172645463325253ull;
    gridDim = {blocks[0], blocks[1], blocks[2]}, blockDim = {block[0], block[1], block[2]};
    threads = block[0] * block[1] * block[2], warps = (threads + 31) / 32;
    for (int t = 0; t < threads; t++) index_of[t] = {t % block[0], t / block[0] % block[1], t / (block[0] * block[1])};
    emulated_dynamic = room - (shared + 15) / 16 * 16;
    idles = 0;
    for (int f = MOST - 1; f >= 0; f--) idle[idles++] = f;
    for (int f = 0; f < threads; f++) prepare(&places[f], stacks + (size_t)f * STACK, live);

    stack_t other = {}, before_stack;
    other.ss_sp = alternate, other.ss_size = 65536;
    sigaltstack(&other, &before_stack);
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    struct sigaction action = {}, before[5];
    action.sa_sigaction = caught, action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; i++) sigaction(signals[i], &action, &before[i]);
    fault = 0;
    const int failed = sigsetjmp(out, 1);
    if (!failed) {
        running = 1;
        const size_t count = (size_t)blocks[0] * blocks[1] * blocks[2], first = order == 2 ? draw(count) : 0;
        size_t step = order == 2 ? draw(count) | 1 : 1;
        for (size_t a = step, b = count; b;) {  // every block once: no common divisor
            const size_t rest = a % b;
            a = b, b = rest;
            if (!b && a != 1) step = 1;
        }
        for (size_t i = 0; i < count; i++) {
            const size_t b = order == 1 ? count - 1 - i : (first + i * step) % count;
            blockIdx = {(unsigned)(b % blocks[0]), (unsigned)(b / blocks[0] % blocks[1]), (unsigned)(b / ((size_t)blocks[0] * blocks[1]))};
            memset(emulated_dynamic, 0xff, room - emulated_dynamic);
            memset(poison, 0xff, poison_end - poison);
            for (int w = 0; w < warps; w++) ready[w] = waiting[w] = 0, fresh[w] = threads - w * 32 < 32 ? (1u << (threads - w * 32)) - 1 : ~0u;
            at_barrier = predicates = 0;
            order_warps();
            const int thread = pick();
            enter(thread);
            fiber_of[thread] = idle[--idles];
            change(&home, &places[fiber_of[thread]]);
        }
    }
    running = 0;
    for (int i = 0; i < 5; i++) sigaction(signals[i], &before[i], 0);
    sigaltstack(&before_stack, 0);
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
extern "C" char __start_emulated_shared[] __attribute__((weak, visibility("hidden"))), __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));
#endif

struct uint3 { unsigned x, y, z; };
struct dim3 : uint3 { dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {} };
extern uint3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;
extern int emulated_thread;
extern char* emulated_dynamic;
extern "C" int emulated_barrier(int predicate, int line);
extern "C" void emulated_collective(void* request, void (*resolve)(void** requests, unsigned mask), unsigned mask, int line);
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
template <class T, class V> static inline T atomicAdd(T* p, V v) { T before = *p; *p = before + (T)v; return before; }
static inline void __trap() { emulated_trap("__trap()"); }

// The warp
template <class T> struct EmulatedShuffle { T value; int source; T result; };
template <class T> void emulated_shuffle(void** requests, unsigned mask) {
    for (unsigned left = mask; left; left &= left - 1) {
        auto request = (EmulatedShuffle<T>*)requests[__builtin_ctz(left)];
        if (!(mask >> request->source & 1)) emulated_trap("a shuffle reads a lane that its mask does not name");
        request->result = ((EmulatedShuffle<T>*)requests[request->source])->value;
    }
}
template <class T> static inline T emulated_read(unsigned mask, T value, int source, int line) {
    EmulatedShuffle<T> request{value, source, value};
    emulated_collective(&request, emulated_shuffle<T>, mask, line);
    return request.result;
}
template <class T> static inline T emulated_shfl(unsigned mask, T v, int source, int width, int line) {
    return emulated_read(mask, v, (emulated_thread % 32 & ~(width - 1)) | (source & (width - 1)), line);
}
template <class T> static inline T emulated_near(unsigned mask, T v, int source, int width, int line) {
    const int lane = emulated_thread % 32;
    return emulated_read(mask, v, (source & ~(width - 1)) == (lane & ~(width - 1)) ? source : lane, line);
}
static inline int emulated_width(int width = 32) { return width; }
#define __shfl_sync(mask, v, source, ...) emulated_shfl(mask, v, source, emulated_width(__VA_ARGS__), __LINE__)
#define __shfl_xor_sync(mask, v, other, ...) emulated_near(mask, v, emulated_thread % 32 ^ (int)(other), emulated_width(__VA_ARGS__), __LINE__)
#define __shfl_up_sync(mask, v, by, ...) emulated_near(mask, v, emulated_thread % 32 - (int)(by), emulated_width(__VA_ARGS__), __LINE__)
#define __shfl_down_sync(mask, v, by, ...) emulated_near(mask, v, emulated_thread % 32 + (int)(by), emulated_width(__VA_ARGS__), __LINE__)

struct EmulatedVote { bool mine; unsigned all; };
static void emulated_vote(void** requests, unsigned mask) {
    unsigned all = 0;
    for (unsigned left = mask; left; left &= left - 1) all |= (unsigned)((EmulatedVote*)requests[__builtin_ctz(left)])->mine << __builtin_ctz(left);
    for (unsigned left = mask; left; left &= left - 1) ((EmulatedVote*)requests[__builtin_ctz(left)])->all = all;
}
static inline unsigned emulated_ballot(unsigned mask, bool mine, int line) {
    EmulatedVote request{mine, 0};
    emulated_collective(&request, emulated_vote, mask, line);
    return request.all;
}
#define __ballot_sync(mask, predicate) emulated_ballot(mask, predicate, __LINE__)
#define __any_sync(mask, predicate) (emulated_ballot(mask, predicate, __LINE__) != 0)
#define __all_sync(mask, predicate) (emulated_ballot(mask, predicate, __LINE__) == (mask))
static inline unsigned emulated_mask(unsigned mask = 0xffffffffu) { return mask; }
#define __syncwarp(...) ((void)emulated_ballot(emulated_mask(__VA_ARGS__), 0, __LINE__))

// Numbers
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

// What the prelude says in PTX
static inline float half_value(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, size = bits & 0x7fff;
    if (size < 0x400) return copysignf(size * 0x1p-24f, __uint_as_float(sign));
    return __uint_as_float(sign | (size << 13) + (size < 0x7c00 ? 0x38000000u : 0x70000000u));
}
static inline unsigned short half_bits(float v) {
    const unsigned bits = __float_as_uint(v), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return 0x7fff;
    if (size >= 0x47800000) return sign | 0x7c00;
    if (size < 0x38800000) return sign | __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000;  // 0.5's last place is a half's smallest number
    return sign | (size + 0xfff + (size >> 13 & 1) - 0x38000000) >> 13;
}
struct EmulatedProduct { float* d; const unsigned* a; const unsigned* b; };
template <class T> void emulated_product(void** requests, unsigned) {
    static double A[16][16], B[16][8];
    const auto lane = [&](int i) { return (EmulatedProduct*)requests[i]; };
    for (int l = 0; l < 32; l++)
        for (int half_of = 0; half_of < 2; half_of++) {
            const int i = l / 4, j = l % 4 * 2 + half_of, shift = 16 * half_of;
            for (int r = 0; r < 4; r++) A[i + r % 2 * 8][j + r / 2 * 8] = load(T{(unsigned short)(lane(l)->a[r] >> shift)});
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
    EmulatedProduct request{d, a, b};
    emulated_collective(&request, emulated_product<T>, 0xffffffffu, 0);
}
"""

FOOTER = r"""
template <class... A, size_t... I> static inline void emulated_call(void (*kernel)(A...), void** values, std::index_sequence<I...>) {
    kernel(*(A*)values[I]...);
}
template <class... A> static inline void emulated_call(void (*kernel)(A...), void** values) {
    emulated_call(kernel, values, std::index_sequence_for<A...>());
}
template <class... A> static int emulated_sizes(void (*)(A...), int* sizes) { int n = 0; ((sizes[n++] = (int)sizeof(A)), ...); return n; }
extern "C" void emulated_shared_room(char** room) {
#ifdef __APPLE__
    room[0] = room[1] = nullptr;
#else
    room[0] = __start_emulated_shared, room[1] = __stop_emulated_shared;
#endif
}
"""


class LaunchError(RuntimeError):
    """A kernel did what a GPU may not do, or leaves undefined."""


settings = SimpleNamespace(order="forward", seed=0, tensor_cores=True)


@contextlib.contextmanager
def emulating(**changed):
    """For the duration: `order` of threads, warps and blocks ("forward", "reversed", "shuffled" by `seed`); `tensor_cores` False as before sm_80."""
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
    """Why the emulator cannot run here, or None."""
    if os.name != "posix":
        return "the CUDA emulator needs a POSIX system"
    return None if shutil.which("g++") else "the CUDA emulator needs g++"


def _library(source, *flags):
    """The path of the compiled library, from the cache if it was compiled before."""
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
        with tempfile.TemporaryDirectory(
            dir=path.parent
        ) as folder:  # renamed when complete: another process may compile the same
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
    return ctypes.PyDLL(str(_library(RUNTIME, "-O2")), mode=ctypes.RTLD_GLOBAL)  # PyDLL: one launch at a time


class Memory:
    """`nbytes` of memory that starts as NaN and ends, as far as 16-byte alignment allows, at a page that may not be touched. `buffer` is its bytes."""

    live = weakref.WeakValueDictionary()  # by address

    def __init__(self, nbytes):
        page = mmap.PAGESIZE
        room = -(-(nbytes + 64) // page) * page
        mapped = mmap.mmap(-1, room + page)
        whole = np.frombuffer(mapped, np.uint8)
        start = room - -(-nbytes // 16) * 16
        self.address, self.nbytes, self.buffer = whole.ctypes.data + start, nbytes, whole[start : start + nbytes]
        self._before, self._after = whole[start - 64 : start], whole[start + nbytes : room]
        self.buffer.fill(0xFF)
        self._before.fill(0xCA)
        self._after.fill(0xCA)
        protect = ctypes.CDLL(None).mprotect
        if protect(ctypes.c_void_p(whole.ctypes.data + room), ctypes.c_size_t(page), 0):
            raise OSError("mprotect")
        Memory.live[self.address] = self

    def outside(self, kernel):
        """What a kernel has written just outside, if anything."""
        for guard, where in ((self._before, "before the start"), (self._after, "past the end")):
            if (guard != 0xCA).any():
                guard.fill(0xCA)
                return f"{kernel}: out of bounds: writes {where} of an array of {self.nbytes} bytes"


def _nearest(address):
    """What lies at an address that may not be touched."""
    for start, memory in list(Memory.live.items()):
        end = start + memory.nbytes
        if end <= address < end + mmap.PAGESIZE + 64:
            return f"{address - end} bytes past the end of an array of {memory.nbytes} bytes"
        if start - mmap.PAGESIZE <= address < start:
            return f"{start - address} bytes before the start of an array of {memory.nbytes} bytes"
    return f"address {address:#x}, in no array: a null pointer, far outside an array, beyond dynamic shared memory, or not aligned"


class Program:
    """One source, compiled when first launched: `program.launch(name, blocks, threads, values, shared)`, `values` NumPy arrays or scalars of one number."""

    def __init__(self, code):
        self.code, self._libraries = code, {}

    def _compiled(self):
        cores = settings.tensor_cores
        if cores not in self._libraries:
            _runtime()
            # Dynamic shared memory: its address is known only when the block runs.
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
                f'extern "C" int emulated_most_{name}() {{ return {before or after or 1024}; }}\n'
                for before, after, name in names
            )
            # Without external linkage the statics of templates are ordinary variables, which can share a section.
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
            self._libraries[cores] = ctypes.PyDLL(str(_library(source, *flags)))
        return self._libraries[cores]

    def has(self, name):
        return hasattr(self._compiled(), f"emulated_run_{name}")

    def launch(self, name, blocks, threads, values, shared=0, memories=()):
        library = self._compiled()
        blocks, threads = ((tuple(map(int, size)) + (1, 1))[:3] for size in (blocks, threads))
        most = min(1024, getattr(library, f"emulated_most_{name}")())
        if (
            threads[0] * threads[1] * threads[2] > most
            or threads[2] > 64
            or min(blocks + threads) < 1
            or max(blocks[1:]) > 65535
            or blocks[0] > 2**31 - 1
        ):
            raise LaunchError(
                f"{name}: no GPU launches {blocks} blocks of {threads} threads, where a block has at most {most}"
            )
        if shared > MOST_SHARED:
            raise LaunchError(f"{name}: a block has at most {MOST_SHARED} bytes of shared memory, not {shared}")
        sizes = (ctypes.c_int * 256)()
        count = getattr(library, f"emulated_sizes_{name}")(sizes)
        values = [np.ascontiguousarray(value) for value in values]
        if [value.nbytes for value in values] != list(sizes[:count]):
            raise LaunchError(
                f"{name} takes arguments of {list(sizes[:count])} bytes, not {[value.nbytes for value in values]}"
            )
        pointers = (ctypes.c_void_p * max(1, count))(*(value.ctypes.data for value in values))
        room, why, where = (ctypes.c_void_p * 2)(), ctypes.create_string_buffer(512), ctypes.c_void_p()
        library.emulated_shared_room(room)
        three = ctypes.c_uint * 3
        failed = _runtime().emulated_launch(
            ctypes.cast(getattr(library, f"emulated_run_{name}"), ctypes.c_void_p),
            pointers,
            three(*blocks),
            three(*threads),
            ctypes.c_size_t(shared),
            ORDERS.index(settings.order),
            ctypes.c_uint64(settings.seed),
            ctypes.c_void_p(room[0]),
            ctypes.c_void_p(room[1]),
            why,
            ctypes.byref(where),
        )
        told = f"{name}: {self._told(why.value.decode(), where.value or 0)}" if failed else None
        for memory in memories:
            told = memory.outside(name) or told
        if told:
            raise LaunchError(told)

    def _told(self, why, address):
        if why == "address":
            return f"out of bounds: {_nearest(address)}"
        if why == "index":
            return (
                "out of bounds or not aligned: an index outside an array of shared memory or registers, or several numbers read or written at once "
                "at no multiple of their size"
            )
        if why == "division":
            return "an integer is divided by zero"
        lines = self.code.splitlines()
        return re.sub(
            r" @(\d+)",
            lambda line: f", in `{lines[int(line[1]) - 1].strip()}`" if 0 < int(line[1]) <= len(lines) else "",
            why,
        )
