"""What a training step knows of itself, kept on the device so that the host need not wait for it: the loss, the norm, whether an update is made.

record   (6,) float64: RECORD, which the host may read between two steps
given    (3,) float64: GIVEN, what the host says anew for every micro-batch
scalars  (6,) in the weights' type: SCALARS, which kernels read as `Scalar`
"""

from .source import Kernel, grid

RECORD = (
    "loss",
    "norm",
    "updates",
    "bad",
    "scale",
    "good",
)  # bad: updates left out in a row.   scale, good: of a GradientScaler
GIVEN = ("rate", "share", "first")  # share: 1 / targets that count.   first: 1 for an update's first micro-batch
SCALARS = (
    "norm",
    "clip",
    "rate",
    "correction1",
    "correction2",
    "slope",
)  # slope: of the sum of losses, in what is derived

NAMES = "".join(
    f"struct {kind} {{ {number} {', '.join(names)}; }};\n"
    for kind, number, names in (
        ("Record", "double", RECORD),
        ("Given", "double", GIVEN),
        ("Scalars", "Number", SCALARS),
    )
)
NUMBERS = [dict(Number="float"), dict(Number="double")]

begin_kernel = Kernel(
    "begin_batch",
    NAMES
    + r"""
extern "C" __global__ void begin_batch(double* record, Number* scalars, const double* given) {
    Record& r = *(Record*)record;
    const Given& g = *(const Given*)given;
    if (g.first != 0) r.loss = 0;
    ((Scalars*)scalars)->slope = r.scale * g.share;
}""",
    threads=1,
    variants=NUMBERS,
)

losses_kernel = Kernel(
    "add_losses",
    NAMES
    + r"""
extern "C" __global__ void add_losses(double* record, const Number* losses, size_t n, const double* given) {
    __shared__ double shared[32];
    double sum = 0;
    #pragma unroll 8
    for (size_t i = threadIdx.x; i < n; i += 1024) sum += losses[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) ((Record*)record)->loss += sum * ((const Given*)given)->share;
}""",
    threads=1024,
    variants=NUMBERS,
)

# A gradient that overflowed under a scale that can be lowered is no bad step: the scale is at fault.
settle_kernel = Kernel(
    "settle",
    NAMES
    + r"""
extern "C" __global__ void settle(double* record, Number* scalars, const double* given, double beta1, double beta2,
                                  double growth, double backoff, double interval, double lowest) {
    Record& r = *(Record*)record;
    Scalars& s = *(Scalars*)scalars;
    const bool sound = r.loss - r.loss == 0, good = sound && s.clip - s.clip == 0;
    r.norm = sound ? s.norm : r.loss - r.loss;
    if (!good) s.clip = r.loss - r.loss + s.clip - s.clip;  // NaN: the sweep leaves the weights alone
    r.updates += good;
    r.bad = good ? 0 : sound && r.scale > lowest ? r.bad : r.bad + 1;
    s.rate = ((const Given*)given)->rate;
    s.correction1 = 1 - pow(beta1, r.updates);
    s.correction2 = 1 - pow(beta2, r.updates);
    if (interval > 0) {
        r.good = good ? r.good + 1 : 0;
        if (!good) r.scale = r.scale * backoff > lowest ? r.scale * backoff : lowest;
        if (r.good == interval) r.scale *= growth, r.good = 0;
    }
}""",
    threads=1,
    variants=NUMBERS,
)

forget_kernel = Kernel(
    "forget",
    r"""
extern "C" __global__ void forget(Number* x, size_t n, const double* record) {
    if (*record - *record == 0) return;  // the loss
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x) x[i] = 0;
}""",
    variants=NUMBERS,
)


def begin_batch(record, scalars, given):
    """slope = scale * share, and no loss yet, if the micro-batch is an update's first."""
    begin_kernel(1, (record, scalars, given), Number=scalars)


def add_losses(record, losses, given):
    """loss += share * sum of losses, in float64"""
    losses_kernel(1, (record, losses, losses.size, given), Number=losses)


def settle(record, scalars, given, beta1, beta2, growth, backoff, interval, lowest):
    """What an update comes to, once `clip_scale` has written norm and clip: `clip` is NaN where none is made, the others are what `adamw` takes.

    growth, backoff, interval, lowest: as of `slm_np.training.scaler.GradientScaler`, whose rule for scale and good this is; interval 0 leaves the scale alone.
    """
    settle_kernel(1, (record, scalars, given, beta1, beta2, growth, backoff, interval, lowest), Number=scalars)


def forget(x, record):
    """x = 0, if the loss is not finite"""
    forget_kernel(grid(x.size), (x, x.size, record), Number=x)
