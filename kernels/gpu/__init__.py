"""GPU kernels: CUDA source launched through CuPy, and cuBLAS. All kernel sets have these names and parameters."""

from .activation import (
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
    silu_backward,
    silu_forward,
    swiglu_backward,
    swiglu_forward,
)
from .adamw import adamw, clip_scale, square_sum, square_sum_blocks
from .attention import attention_backward, attention_forward, attention_scratch
from .attention_step import attention_step
from .convert import convert
from .convolution import convolution_backward, convolution_forward
from .dropout import dropout_backward, dropout_forward
from .embedding import embedding_backward, embedding_forward
from .head_norm import head_norm_backward, head_norm_forward
from .linear import (
    cast_copy,
    cast_copy_rows,
    linear_backward_input,
    linear_backward_weight,
    linear_forward,
    linear_transposed_backward,
    linear_transposed_forward,
    update_cast_copy,
)
from .loss import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from .norm import layernorm_backward, layernorm_forward, rmsnorm_backward, rmsnorm_forward
from .orthogonal import orthogonal_update
from .recurrence import (
    batch_major,
    linear_recurrence_backward,
    linear_recurrence_forward,
    linear_recurrence_scratch,
    time_major,
)
from .residual import accumulate
from .rotary import rotary_backward, rotary_forward
from .scan import (
    selective_scan_backward,
    selective_scan_chunks,
    selective_scan_forward,
    selective_scan_partials,
    selective_scan_scratch,
)
