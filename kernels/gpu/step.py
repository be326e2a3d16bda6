"""The state of a training step, kept on the device so that the host synchronizes only when it logs.

It holds the loss, the norm, and whether an update is made.

record   (6,) float64: RECORD, which the host may read between two steps
inputs   (3,) float64: INPUTS, the host's inputs of a micro-batch
scalars  (6,) in the weights' type: SCALARS, which kernels read as `Scalar`
"""

from .source import Kernel, grid

RECORD = (
    "loss",
    "norm",
    "updates",
    "bad",  # consecutive skipped updates, apart from those that lowered the scale
    "scale",  # of a GradientScaler
    "good",  # of a GradientScaler
)
INPUTS = (
    "rate",  # learning rate
    "loss_weight",  # 1 / targets that count
    "first",  # 1 in the first micro-batch of an update, else 0
)
SCALARS = (
    "norm",
    "clip",  # gradient_scale of `adamw`
    "rate",
    "correction1",
    "correction2",
    "loss_gradient",  # d(scaled mean loss) / d(loss of one target)
)

STRUCTS = "".join(
    f"struct {name} {{ {c_type} {', '.join(fields)}; }};\n"
    for name, c_type, fields in (
        ("Record", "double", RECORD),
        ("Inputs", "double", INPUTS),
        ("Scalars", "Real", SCALARS),
    )
)
REALS = [dict(Real="float"), dict(Real="double")]

begin_batch_kernel = Kernel(
    "begin_batch",
    STRUCTS
    + r"""
extern "C" __global__ void begin_batch(double* record, Real* scalars, const double* inputs) {
    Record& r = *(Record*)record;
    const Inputs& i = *(const Inputs*)inputs;
    if (i.first != 0) r.loss = 0;
    ((Scalars*)scalars)->loss_gradient = r.scale * i.loss_weight;
}""",
    threads=1,
    variants=REALS,
)

add_losses_kernel = Kernel(
    "add_losses",
    STRUCTS
    + r"""
extern "C" __global__ void add_losses(double* record, const Real* losses, size_t n, const double* inputs) {
    __shared__ double shared[32];
    double sum = 0;
    #pragma unroll 8
    for (size_t i = threadIdx.x; i < n; i += 1024) sum += losses[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) ((Record*)record)->loss += sum * ((const Inputs*)inputs)->loss_weight;
}""",
    threads=1024,
    variants=REALS,
)

# A gradient that overflows while the scale can still be lowered does not count as a bad step: the scale was too large.
finish_update_kernel = Kernel(
    "finish_update",
    STRUCTS
    + r"""
extern "C" __global__ void finish_update(double* record, Real* scalars, const double* inputs,
                                         double beta1, double beta2,
                                         double growth, double backoff, double interval, double lowest) {
    Record& r = *(Record*)record;
    Scalars& s = *(Scalars*)scalars;
    const bool finite_loss = r.loss - r.loss == 0, good = finite_loss && s.clip - s.clip == 0;
    r.norm = finite_loss ? s.norm : r.loss - r.loss;
    if (!good) s.clip = r.loss - r.loss + s.clip - s.clip;  // NaN: AdamW leaves the weights unchanged
    r.updates += good;
    r.bad = good ? 0 : finite_loss && r.scale > lowest ? r.bad : r.bad + 1;
    s.rate = ((const Inputs*)inputs)->rate;
    s.correction1 = 1 - pow(beta1, r.updates);
    s.correction2 = 1 - pow(beta2, r.updates);
    if (interval > 0) {
        r.good = good ? r.good + 1 : 0;
        if (!good) r.scale = r.scale * backoff > lowest ? r.scale * backoff : lowest;
        if (r.good == interval) r.scale *= growth, r.good = 0;
    }
}""",
    threads=1,
    variants=REALS,
)

zero_if_not_finite_kernel = Kernel(
    "zero_if_not_finite",
    r"""
extern "C" __global__ void zero_if_not_finite(Real* x, size_t n, const double* record) {
    if (*record - *record == 0) return;  // the loss is finite
    const size_t first = blockIdx.x * (size_t)blockDim.x + threadIdx.x, stride = (size_t)gridDim.x * blockDim.x;
    for (size_t i = first; i < n; i += stride) x[i] = 0;
}""",
    variants=REALS,
)


def begin_batch(record, scalars, inputs):
    """loss_gradient = scale * loss_weight,   and loss = 0 in the first micro-batch of an update"""
    begin_batch_kernel(1, (record, scalars, inputs), Real=scalars)


def add_losses(record, losses, inputs):
    """loss += loss_weight * sum of losses, in float64"""
    add_losses_kernel(1, (record, losses, losses.size, inputs), Real=losses)


def finish_update(
    record,
    scalars,
    inputs,
    beta1,
    beta2,
    growth,
    backoff,
    interval,
    lowest,
):
    """Decide on the update after `clip_scale` has written norm and clip: the other scalars become what `adamw` takes.

    clip becomes NaN if loss or norm are not finite: then no update is made.

    growth, backoff, interval, lowest: of `slm_np.training.scaler.GradientScaler`, which scale and good follow. interval
    0 for no scaler.
    """
    finish_update_kernel(1, (record, scalars, inputs, beta1, beta2, growth, backoff, interval, lowest), Real=scalars)


def zero_if_not_finite(x, record):
    """x = 0, if the loss is not finite"""
    zero_if_not_finite_kernel(grid(x.size), (x, x.size, record), Real=x)
